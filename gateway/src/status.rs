//! What `/status` shows: the last word of every link, kept after its session. Field names are a stable schema.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tombolo_proto::cloud::{CloudPartitionStatus, CloudStatus, LinkSettings, MirrorState, MirrorStatus};
use tombolo_proto::id::{LinkName, Term, TopicName};
use tombolo_service::admin_http::StatusDocument;

use crate::metrics;
use crate::registry::{Ledger, LedgerEntry, LedgerKey, LedgerKind, Ledgers};
use crate::settings::Links;

const ACTIVE: &str = "ACTIVE";
const UNAVAILABLE: &str = "UNAVAILABLE";
const MIRROR_STATES: [&str; 5] = ["PENDING_MIRROR", "ACTIVE", "PAUSED", "SOURCE_UNAVAILABLE", "FAILED"];

/// Collects what sessions tell.
#[derive(Debug, Default)]
pub(crate) struct Board {
    links: Mutex<BTreeMap<LinkName, LinkView>>,
}

/// The agent at the other end of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    /// When its process was first seen, where it tells who it is.
    pub(crate) since: Option<SystemTime>,
}

/// The last word of one link.
#[derive(Debug, Clone, Default)]
struct LinkView {
    /// Term of the session that writes here; an older one has nothing to say any more.
    term: Term,
    active: bool,
    /// Why there is no session.
    reason: String,
    agent: Option<Agent>,
    rtt: Option<Duration>,
    status: CloudStatus,
}

impl Board {
    /// What a session that holds its link has to say.
    pub(crate) fn publish(&self, link: &LinkName, term: Term, agent: Agent, rtt: Duration, status: CloudStatus) {
        let mut links = self.links();
        let view = links.entry(link.clone()).or_default();
        if view.term <= term {
            *view = LinkView { term, active: true, reason: String::new(), agent: Some(agent), rtt: Some(rtt), status };
        }
    }

    /// A session ended. What its mirrors were stays, but none of them is active.
    pub(crate) fn ended(&self, link: &LinkName, term: Term, reason: &str) {
        let mut links = self.links();
        let view = links.entry(link.clone()).or_default();
        if view.term > term {
            return;
        }
        view.term = term;
        view.active = false;
        reason.clone_into(&mut view.reason);
        view.rtt = None;
        view.status.held_bytes = 0;
        for mirror in &mut view.status.mirrors {
            match mirror.state {
                MirrorState::Pending { .. } | MirrorState::Active | MirrorState::SourceUnavailable { .. } => {
                    mirror.state = MirrorState::SourceUnavailable { reason: format!("no session: {reason}") };
                }
                MirrorState::Paused | MirrorState::Failed(_) => {}
            }
            for partition in &mut mirror.partitions {
                partition.live = false;
                partition.held_bytes = 0;
            }
        }
    }

    /// A connection ended that never held its link.
    pub(crate) fn turned_away(&self, link: &LinkName, reason: &str) {
        let mut links = self.links();
        let view = links.entry(link.clone()).or_default();
        if !view.active {
            reason.clone_into(&mut view.reason);
        }
    }

    /// The document, for the links of the settings; also sets the gauges.
    pub(crate) fn document(&self, settings: &Links, ledgers: &Ledgers) -> StatusDocument {
        let links = self.links();
        let names: BTreeSet<&LinkName> = settings.keys().chain(links.keys()).chain(ledgers.keys()).collect();
        let mut shown = Vec::with_capacity(names.len());
        let mut held = 0;
        let none = LinkSettings::default();
        for name in names {
            let view = links.get(name).cloned().unwrap_or_default();
            held += view.status.held_bytes;
            let mut link = link_shown(name, view, settings.get(name).unwrap_or(&none));
            show_ledgers(&mut link, ledgers.get(name).map_or(&[][..], Vec::as_slice));
            shown.push(link);
        }
        drop(links);
        set_gauges(&shown, held);
        StatusDocument::new(&Document { service: "tombolo-gateway", version: env!("CARGO_PKG_VERSION"), links: shown })
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<LinkName, LinkView>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Serialize)]
struct Document {
    service: &'static str,
    version: &'static str,
    links: Vec<LinkShown>,
}

#[derive(Debug, Serialize)]
struct LinkShown {
    name: String,
    state: &'static str,
    reason: Option<String>,
    term: Option<u64>,
    agent: Option<AgentShown>,
    source_cluster_id: Option<String>,
    rtt_ms: Option<u64>,
    held_bytes: usize,
    /// What becomes a mirror as it appears.
    topics: Vec<String>,
    mirrors: Vec<MirrorShown>,
    /// What the source deleted before it was mirrored, for ever.
    losses: Vec<LedgerShown>,
    /// Where mirrors were made to start above 0.
    starts: Vec<LedgerShown>,
}

/// Offsets of a mirror that never held what the source had there.
#[derive(Debug, Serialize)]
struct LedgerShown {
    topic: String,
    partition: i32,
    from: i64,
    /// Offset after the last.
    to: i64,
    /// RFC 3339.
    at: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct AgentShown {
    address: String,
    software: String,
    /// When its process was first seen, RFC 3339.
    since: Option<String>,
}

#[derive(Debug, Serialize)]
struct MirrorShown {
    source_topic: String,
    topic: String,
    mirror_status: &'static str,
    /// Name of the failure's code.
    mirror_topic_error: Option<&'static str>,
    detail: Option<String>,
    /// Sum over partitions, where the source's end is known.
    lag: Option<i64>,
    partitions: Vec<PartitionShown>,
}

#[derive(Debug, Serialize)]
struct PartitionShown {
    partition: i32,
    log_start: i64,
    confirmed: i64,
    received: i64,
    source_high_watermark: Option<i64>,
    lag: Option<i64>,
    held_bytes: usize,
    live: bool,
    last_doubt: Option<String>,
    /// What is being done other than appending batches.
    doing: Option<String>,
    /// Offsets of gaps that came in this session.
    gap_offsets: i64,
    rewinds: u64,
}

fn link_shown(name: &LinkName, view: LinkView, settings: &LinkSettings) -> LinkShown {
    let seen: BTreeSet<TopicName> = view.status.mirrors.iter().map(|mirror| mirror.source.clone()).collect();
    let unseen = settings.mirrors.iter().filter(|mirror| !seen.contains(&mirror.source)).map(|mirror| MirrorStatus {
        source: mirror.source.clone(),
        topic: mirror.topic.clone(),
        state: if mirror.paused {
            MirrorState::Paused
        } else {
            MirrorState::Pending { reason: "no session of the link has seen it yet".to_owned() }
        },
        partitions: Vec::new(),
    });
    let mirrors = view.status.mirrors.into_iter().chain(unseen).map(mirror_shown).collect();
    let never = view.agent.is_none() && view.reason.is_empty();
    let reason = if never { "no session yet".to_owned() } else { view.reason };
    LinkShown {
        name: name.to_string(),
        state: if view.active { ACTIVE } else { UNAVAILABLE },
        reason: (!view.active).then_some(reason),
        term: view.status.term.map(|term| term.0),
        agent: view.agent.map(|agent| AgentShown {
            address: agent.address.to_string(),
            software: view.status.agent_software,
            since: agent.since.map(|since| humantime::format_rfc3339_seconds(since).to_string()),
        }),
        source_cluster_id: Some(view.status.source_cluster_id).filter(|id| !id.is_empty()),
        rtt_ms: view.rtt.map(|rtt| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX)),
        held_bytes: view.status.held_bytes,
        topics: settings.filters.iter().map(ToString::to_string).collect(),
        mirrors,
        losses: Vec::new(),
        starts: Vec::new(),
    }
}

fn show_ledgers(link: &mut LinkShown, ledgers: &[(LedgerKey, Ledger)]) {
    let mut lost = 0;
    for (key, ledger) in ledgers {
        lost += ledger.losses().map(LedgerEntry::offsets).sum::<u64>();
        for entry in ledger.entries() {
            let shown = LedgerShown {
                topic: key.topic.to_string(),
                partition: key.partition,
                from: entry.from,
                to: entry.to,
                at: entry.when(),
                reason: entry.reason.clone(),
            };
            match entry.kind {
                LedgerKind::Start => link.starts.push(shown),
                LedgerKind::Loss => link.losses.push(shown),
            }
        }
    }
    metrics::lost_offsets(&link.name, lost);
}

fn mirror_shown(mirror: MirrorStatus) -> MirrorShown {
    let partitions: Vec<PartitionShown> = mirror.partitions.into_iter().map(partition_shown).collect();
    let lags: Option<Vec<i64>> = partitions.iter().map(|partition| partition.lag).collect();
    let code = if let MirrorState::Failed(failure) = &mirror.state { Some(failure.code.name()) } else { None };
    MirrorShown {
        source_topic: mirror.source.to_string(),
        topic: mirror.topic.to_string(),
        mirror_status: mirror.state.name(),
        mirror_topic_error: code,
        detail: mirror.state.reason(),
        lag: lags.filter(|lags| !lags.is_empty()).map(|lags| lags.iter().sum()),
        partitions,
    }
}

fn partition_shown(status: CloudPartitionStatus) -> PartitionShown {
    PartitionShown {
        partition: status.partition,
        log_start: status.log_start,
        confirmed: status.confirmed,
        received: status.received,
        source_high_watermark: status.source_high_watermark,
        lag: status.source_high_watermark.map(|end| (end - status.confirmed).max(0)),
        held_bytes: status.held_bytes,
        live: status.live,
        last_doubt: status.last_doubt,
        doing: status.doing,
        gap_offsets: status.gap_offsets,
        rewinds: status.rewinds,
    }
}

fn set_gauges(shown: &[LinkShown], held: usize) {
    let sites = [ACTIVE, UNAVAILABLE].map(|state| (state, shown.iter().filter(|link| link.state == state).count()));
    let mirrors = MIRROR_STATES.map(|state| {
        let of_link = |link: &LinkShown| link.mirrors.iter().filter(|mirror| mirror.mirror_status == state).count();
        (state, shown.iter().map(of_link).sum())
    });
    metrics::sums(&sites, &mirrors, held);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::failure::{Failure, FailureCode};

    fn link() -> LinkName {
        LinkName::new("ship-17").unwrap()
    }

    fn mirror(topic: &str, state: MirrorState) -> MirrorStatus {
        let partition = CloudPartitionStatus {
            partition: 0,
            log_start: 0,
            confirmed: 5,
            received: 7,
            source_high_watermark: Some(9),
            held_bytes: 10,
            live: true,
            last_doubt: None,
            doing: None,
            gap_offsets: 0,
            rewinds: 0,
        };
        let topic = TopicName::new(topic).unwrap();
        MirrorStatus { source: topic.clone(), topic, state, partitions: vec![partition] }
    }

    fn status(state: MirrorState) -> CloudStatus {
        CloudStatus {
            term: Some(Term(3)),
            source_cluster_id: "abc".to_owned(),
            agent_software: "1".to_owned(),
            held_bytes: 10,
            mirrors: vec![mirror("a", state), mirror("b", MirrorState::Active)],
        }
    }

    #[test]
    fn a_failure_stays_visible_after_the_session() {
        let board = Board::default();
        let agent = "127.0.0.1:5".parse().unwrap();
        let failure = Failure::at(FailureCode::ForeignWrite, 0, 5, "3 records").until(8);
        let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(1_790_164_801));
        let agent = Agent { address: agent, since };
        board.publish(&link(), Term(1), agent, Duration::from_millis(40), status(MirrorState::Failed(failure)));
        let shown = board.document(&Links::new(), &Ledgers::new()).value();
        assert_eq!(shown["links"][0]["state"], "ACTIVE");
        assert_eq!(shown["links"][0]["mirrors"][1]["lag"], 4);
        assert_eq!(shown["links"][0]["rtt_ms"], 40);
        assert_eq!(shown["links"][0]["agent"]["since"], "2026-09-23T12:00:01Z");
        board.ended(&link(), Term(1), "timed out");
        let shown = board.document(&Links::new(), &Ledgers::new()).value();
        let link = &shown["links"][0];
        assert_eq!((&link["state"], &link["reason"]), (&"UNAVAILABLE".into(), &"timed out".into()));
        assert_eq!(link["held_bytes"], 0);
        assert_eq!(link["mirrors"][0]["mirror_status"], "FAILED");
        assert_eq!(link["mirrors"][0]["mirror_topic_error"], "FOREIGN_WRITE");
        assert_eq!(link["mirrors"][1]["mirror_status"], "SOURCE_UNAVAILABLE");
        assert_eq!(link["mirrors"][1]["partitions"][0]["live"], false);
    }

    #[test]
    fn an_older_session_does_not_overwrite_a_newer_one() {
        let board = Board::default();
        let agent = "127.0.0.1:5".parse().unwrap();
        let agent = Agent { address: agent, since: None };
        board.publish(&link(), Term(2), agent, Duration::ZERO, status(MirrorState::Active));
        board.ended(&link(), Term(1), "superseded");
        assert_eq!(board.document(&Links::new(), &Ledgers::new()).value()["links"][0]["state"], "ACTIVE");
    }

    #[test]
    fn losses_and_starts_are_shown_whatever_became_of_the_link() {
        let key = LedgerKey { link: link(), topic: TopicName::new("orders").unwrap(), partition: 2 };
        let entry = |kind, from, to| LedgerEntry {
            kind,
            from,
            to,
            at: 1_790_164_801,
            reason: "retention".to_owned(),
            topic_id: None,
        };
        let entries = [entry(LedgerKind::Start, 0, 40), entry(LedgerKind::Loss, 50, 60)];
        let ledgers = Ledgers::from([(link(), vec![(key, Ledger::of(&entries))])]);
        let shown = Board::default().document(&Links::new(), &ledgers).value();
        let link = &shown["links"][0];
        assert_eq!(link["losses"][0]["partition"], 2);
        assert_eq!((&link["losses"][0]["from"], &link["losses"][0]["to"]), (&50.into(), &60.into()));
        assert_eq!(link["losses"][0]["at"], "2026-09-23T12:00:01Z");
        assert_eq!(link["starts"][0]["to"], 40);
    }

    #[test]
    fn links_without_a_session_show_their_mirrors() {
        let topic = TopicName::new("orders").unwrap();
        let settings = tombolo_proto::cloud::MirrorSettings::new(topic.clone(), topic);
        let settings = tombolo_proto::cloud::MirrorSettings { paused: true, ..settings };
        let filters = vec![tombolo_proto::pattern::TopicPattern::new("sensor.*").unwrap()];
        let links =
            Links::from([(link(), LinkSettings { mirrors: vec![settings], filters, ..LinkSettings::default() })]);
        let shown = Board::default().document(&links, &Ledgers::new()).value();
        assert_eq!(shown["links"][0]["reason"], "no session yet");
        assert_eq!(shown["links"][0]["mirrors"][0]["mirror_status"], "PAUSED");
        assert_eq!(shown["links"][0]["topics"][0], "sensor.*");
    }
}
