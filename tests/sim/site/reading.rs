//! What an agent asks of the source: shapes of topics, comparisons with a mirror's end, and records.

use tombolo_proto::edge::{EdgeInput, Retention, SourceTopic, Verdict};
use tombolo_proto::failure::Failure;
use tombolo_proto::id::{Offset, Time, TopicName};
use tombolo_proto::wire::{TailBatch, TopicConfig};

use super::{AgentEvent, Fetcher};
use crate::bugs::Bug;
use crate::plan::OddBatch;
use crate::source::{Ending, Fetched};
use crate::world::{FILTERED, Place, World, source_topic};

impl World {
    pub(super) fn discovered(&mut self, topic: usize) {
        if !self.agent.watched.contains(&topic) {
            return;
        }
        let id = if self.plan.bug == Some(Bug::OldTopicShipped) { 0 } else { self.topic_id(topic) };
        let source = if self.source_gone.contains_key(&topic) {
            Err("the topic does not exist".to_owned())
        } else {
            let partitions = self.source.keys().filter(|place| place.0 == topic).count();
            Ok(SourceTopic {
                partitions: i32::try_from(partitions).expect("small"),
                topic_id: Some([id; 16]),
                configs: self.configs_of(topic),
                retention: Retention::default(),
            })
        };
        if source.is_ok() {
            self.agent.topic_ids.insert(topic, id);
        }
        let topic = source_topic(topic);
        self.tell_agent(EdgeInput::Source { topic, source });
    }

    fn configs_of(&self, topic: usize) -> Vec<TopicConfig> {
        let compacted = self.plan.topics.get(&topic).is_some_and(|plan| plan.compacted);
        let policy = TopicConfig { name: "cleanup.policy".to_owned(), value: "compact,delete".to_owned() };
        if compacted { vec![policy] } else { Vec::new() }
    }

    /// A source topic has changed; an agent that watches it finds out.
    pub(crate) fn source_changed(&mut self, topic: usize) {
        let wait = self.dice.millis(10, 2_000);
        self.agent_after(wait, AgentEvent::Discovered { topic });
        if topic >= FILTERED {
            self.agent_after(wait, AgentEvent::Searched);
        }
    }

    /// The agent looks for topics that the gateway's filters mean.
    pub(super) fn searched(&mut self) {
        let there = self.plan.topics.keys().filter(|topic| !self.source_gone.contains_key(topic));
        let names = there.map(|&topic| source_topic(topic));
        let is_meant = |name: &TopicName| self.agent.filters.iter().any(|filter| filter.matches(name));
        let topics: Vec<_> = names.filter(is_meant).collect();
        if !topics.is_empty() {
            self.tell_agent(EdgeInput::Discovered { topics });
        }
    }

    /// Which of the topics that had this name one after another the source has.
    pub(crate) fn topic_id(&self, topic: usize) -> u8 {
        self.remade.get(&topic).copied().unwrap_or(0)
    }

    pub(super) fn compare(
        &mut self,
        place: Place,
        ticket: u64,
        tail: Vec<TailBatch>,
        next_offset: Offset,
        compacted: bool,
    ) {
        let compared = self
            .source
            .get(&place)
            .filter(|_| !self.source_gone.contains_key(&place.0))
            .and_then(|source| source.compare(&tail, next_offset, compacted));
        let Some((mut verdict, epoch)) = compared else {
            let event = AgentEvent::Compare { place, ticket, tail, next_offset, compacted };
            let wait = self.slowly(Time::from_millis(100));
            return self.agent_after(wait, event);
        };
        if self.plan.bug == Some(Bug::ResumeWithoutTail) {
            verdict = Verdict::Agrees;
        }
        self.ghost.count(match verdict {
            Verdict::Agrees => "tail compared from the source",
            Verdict::Unverified => "no tail to compare",
            Verdict::Failed(_) => "tail found different",
        });
        self.agent.compared.insert(place, (next_offset, epoch));
        let topic = source_topic(place.0);
        self.tell_agent(EdgeInput::TailCompared { topic, partition: place.1, ticket, verdict });
    }

    pub(super) fn start_fetch(&mut self, place: Place, fetch: u64, offset: Offset, epoch: Option<i32>) {
        let compared = self.agent.compared.get(&place).copied();
        let last_epoch = epoch.or_else(|| compared.filter(|&(at, _)| at == offset).and_then(|(_, epoch)| epoch));
        let topic_id = self.agent.topic_ids.get(&place.0).copied().unwrap_or(0);
        self.trace(|| format!("fetch {place:?} from {offset} after epoch {last_epoch:?}, topic id {topic_id}"));
        if self.ghost.fetched_beyond(place, offset) {
            self.ghost.count("fetched again");
        }
        let fetcher = Fetcher { fetch, position: offset, last_epoch, topic_id, paused: false, under_way: false };
        self.agent.fetchers.insert(place, fetcher);
        self.fetch_on(place, Time::ZERO);
    }

    /// Asks for more of a partition, unless it is paused or a request is under way.
    pub(super) fn fetch_on(&mut self, place: Place, wait: Time) {
        let delay = self.dice.millis(0, 40);
        let Some(fetcher) = self.agent.fetchers.get_mut(&place) else {
            return;
        };
        if fetcher.paused || std::mem::replace(&mut fetcher.under_way, true) {
            return;
        }
        let fetch = fetcher.fetch;
        let wait = self.slowly(wait);
        self.agent_after(wait + delay, AgentEvent::FetchDue { place, fetch });
    }

    /// The source's broker reads.
    pub(super) fn fetch_due(&mut self, place: Place, fetch: u64) {
        let Some(fetcher) = self.agent.fetchers.get(&place).filter(|fetcher| fetcher.fetch == fetch) else {
            return;
        };
        let Some(source) = self.source.get(&place) else { return };
        // Fetch v13 names the topic by its id.
        let is_another = fetcher.topic_id != self.topic_id(place.0) && self.plan.bug != Some(Bug::OldTopicShipped);
        if is_another || self.source_gone.contains_key(&place.0) {
            let wait = self.slowly(Time::from_millis(300));
            return self.agent_after(wait, AgentEvent::FetchDue { place, fetch });
        }
        let (position, bug) = (fetcher.position, self.plan.bug);
        let passes_over = bug == Some(Bug::LossAsGap) && position < source.log_start();
        let fetched = if passes_over {
            source.fetch_as_if_begun_at(position, self.plan.fetch_bytes)
        } else {
            let committed = bug != Some(Bug::ReadUncommitted);
            source.fetch(position, fetcher.last_epoch, self.plan.fetch_bytes, committed)
        };
        let delay = self.dice.millis(0, 40);
        self.agent_after(delay, AgentEvent::FetchArrives { place, fetch, fetched });
    }

    pub(super) fn fetch_arrives(&mut self, place: Place, fetch: u64, fetched: Fetched) {
        let largest = self.plan.max_frame_bytes;
        let Some(fetcher) = self.agent.fetchers.get_mut(&place).filter(|fetcher| fetcher.fetch == fetch) else {
            return;
        };
        fetcher.under_way = false;
        let records = match fetched {
            Fetched::Failed(failure) => return self.fetch_failed(place, fetch, failure),
            Fetched::Overtaken { log_start } => return self.overtaken(place, fetch, log_start),
            Fetched::Records(records) => records,
        };
        let (high_watermark, log_start) = (records.high_watermark, records.log_start);
        let read = records.read(place.1, fetcher.position, largest);
        if let Some(last) = read.entries.last() {
            fetcher.position = last.next_offset();
            fetcher.last_epoch = read.epoch;
            self.ghost.fetched(place, last.next_offset());
        }
        let idle = read.entries.is_empty();
        let (topic, partition, entries, epoch) = (source_topic(place.0), place.1, read.entries, read.epoch);
        self.tell_agent(EdgeInput::Fetched { topic, partition, fetch, entries, epoch, high_watermark, log_start });
        self.check_edge_budget();
        match read.ending {
            Some(Ending::Failed(failure)) => return self.fetch_failed(place, fetch, failure),
            Some(Ending::Overtaken) => return self.overtaken(place, fetch, log_start),
            None => {}
        }
        let wait = if idle { self.dice.millis(50, 500) } else { Time::ZERO };
        self.fetch_on(place, wait);
    }

    /// The source's log begins above where it was to be read on.
    fn overtaken(&mut self, place: Place, fetch: u64, log_start: Offset) {
        self.ghost.count("source starts above the position");
        let (topic, partition) = (source_topic(place.0), place.1);
        self.tell_agent(EdgeInput::Overtaken { topic, partition, fetch, log_start });
    }

    fn fetch_failed(&mut self, place: Place, fetch: u64, failure: Failure) {
        let topic = source_topic(place.0);
        self.tell_agent(EdgeInput::FetchFailed { topic, fetch, failure });
    }

    /// A producer at the source writes.
    pub(crate) fn append_at_source(&mut self, place: Place, odd: Option<OddBatch>) {
        let now_ms = self.wall_ms();
        let size = match odd {
            // Too large for both ends, or for the gateway only.
            Some(OddBatch::TooLargeForFrame) => {
                self.dice.between(self.plan.gateway_frame_bytes, self.plan.max_frame_bytes)
            }
            _ => self.plan.cloud_batch_bytes(place.0),
        };
        let (Some(source), Some(topic)) = (self.source.get_mut(&place), self.plan.topics.get(&place.0)) else {
            return;
        };
        source.append(&mut self.dice, topic, now_ms, odd.map(|odd| (odd, size)));
        self.trace(|| format!("source: {place:?} grows, {odd:?}"));
    }
}
