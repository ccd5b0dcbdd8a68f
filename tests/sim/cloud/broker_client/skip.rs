//! Markers: written to the leader that told the log end, one request of a partition at a time, over a connection of their
//! own. Nothing deduplicates them, so what an answer does not tell is read behind it over the same connection, and what a
//! dead connection leaves open only time tells.

use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Term};
use tombolo_proto::limits::MAX_MARKERS;
use tombolo_proto::mirror::Outcome;

use super::{doubt, outcome, told};
use crate::broker::Intent;
use crate::bugs::Bug;
use crate::cloud::Session;
use crate::cluster::{Answer, Request, What};
use crate::world::{GatewayEvent, Place, World};

fn log_end(log_end: Offset) -> Outcome {
    Outcome::Appended { base_offset: log_end }
}

impl World {
    /// The coordinator epoch of a term's markers.
    pub(crate) fn coordinator_epoch(term: Term) -> i32 {
        i32::try_from(term.0 % u64::from(u32::MAX >> 1)).expect("less than 2^31")
    }

    /// Queues markers for their leader. Returns what the session has to hear at once.
    pub(in crate::cloud) fn skip_for(
        &mut self,
        at: usize,
        id: u64,
        session: &Session,
        (mirror, place): (MirrorId, Place),
        (ticket, offset): (u64, Offset),
        count: i64,
    ) -> Option<CloudInput> {
        let intent = Intent { term: session.link.term()?, offset };
        let what = What::Markers { count };
        let request = Request { session: id, place, mirror: mirror.0, ticket, what, intent };
        self.ghost.count("skip");
        if count == MAX_MARKERS {
            self.ghost.count("skip of more than one request");
        }
        let early = (self.plan.bug == Some(Bug::ConfirmBeforeMarkers)).then(|| told(&request, log_end(offset + count)));
        if let Err(request) = self.queue_request(at, session.verified.get(&place), request) {
            return Some(told(&request, doubt("the connection is another")));
        }
        early
    }

    pub(super) fn markers_answered(
        &mut self,
        at: usize,
        connection: u64,
        request: Request,
        count: i64,
        answer: Answer,
    ) {
        let end = request.intent.offset + count;
        let trusts = self.plan.bug == Some(Bug::TrustMarkerCount);
        let outcome = match answer {
            Answer::Marked if count == 1 || trusts => log_end(end),
            Answer::Marked | Answer::TimedOut => return self.look_behind(at, connection, request),
            _ => outcome(answer),
        };
        self.tell_skipped(at, &request, outcome, count);
    }

    /// Reads the log end over the connection that the markers took: the broker has done with them by then.
    fn look_behind(&mut self, at: usize, connection: u64, request: Request) {
        let look = Request { what: What::Look, ..request };
        if let Some(found) = self.gateway(at).brokers.by_id(connection) {
            found.outstanding.push_back(look.clone());
            self.send_to_broker(connection, look);
        }
    }

    pub(super) fn looked_behind_markers(&mut self, at: usize, request: &Request, answer: Answer) {
        let outcome = match answer {
            Answer::Offsets { log_end: end, high_watermark } if high_watermark >= end => log_end(end),
            Answer::Offsets { .. } => doubt("the high watermark stays behind"),
            _ => outcome(answer),
        };
        self.tell_skipped(at, request, outcome, 1);
    }

    fn tell_skipped(&mut self, at: usize, request: &Request, mut outcome: Outcome, count: i64) {
        if matches!(outcome, Outcome::Doubt { .. }) {
            self.ghost.count("skip in doubt");
            if self.plan.bug == Some(Bug::AssumeMarkers) {
                outcome = log_end(request.intent.offset + count);
            }
        }
        let (session, place, intent) = (request.session, request.place, request.intent);
        self.trace(|| format!("session {session}: {place:?} markers {intent:?}: {outcome:?}"));
        self.drive(at, session, told(request, outcome));
    }

    /// With the bug of that name, markers that a dead connection took along are sent again at once.
    pub(super) fn resends(&mut self, at: usize, request: &Request) -> bool {
        let What::Markers { .. } = request.what else { return false };
        self.ghost.count("skip in doubt");
        if self.plan.bug != Some(Bug::ResendMarkers) {
            return false;
        }
        let Some(leader) = self.cluster.partitions.get(&request.place).and_then(|hosted| hosted.leader) else {
            return false;
        };
        let process = self.gateway(at).process;
        let connection = self.connect(at, process, (leader, super::ADMIN));
        let Some(found) = self.gateway(at).brokers.by_id(connection) else { return false };
        found.unsent.push_back(request.clone());
        let wait = self.broker_delay();
        self.gateway_after(at, wait, GatewayEvent::Write { connection });
        true
    }

    /// Offsets from `offset` on that a session has yet to skip.
    pub(crate) fn gap_left(&self, session: u64, place: Place, offset: Offset) -> i64 {
        self.gateways.iter().find_map(|gateway| gateway.gap_end(session, place, offset)).map_or(0, |end| end - offset)
    }
}
