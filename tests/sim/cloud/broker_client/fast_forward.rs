//! A mirror that is to start where its source's log does: the registry first, then filler up to there, then the filler goes.

use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Term};
use tombolo_proto::limits::MAX_IN_FLIGHT;
use tombolo_proto::mirror::advance;
use tombolo_proto::testing::BatchBuilder;

use super::doubt;
use crate::broker::Intent;
use crate::cluster::{Answer, Request, What};
use crate::world::{GatewayEvent, Place, World};

/// Largest filler batch.
const MAX_FILLER: Offset = 1 << 30;

/// A fast-forward under way.
#[derive(Debug)]
pub(crate) struct Fill {
    mirror: u32,
    ticket: u64,
    term: Term,
    to: Offset,
    /// Records of one batch.
    size: Offset,
    next: Offset,
    sequence: i32,
    confirmed: Offset,
    in_flight: usize,
    /// The broker has taken some of it, so it remembers the producer.
    known: bool,
}

impl World {
    /// The registry knows: filler goes out.
    pub(in crate::cloud) fn fill(
        &mut self,
        at: usize,
        (session, place): (u64, Place),
        (mirror, ticket): (u32, u64),
        (from, to): (Offset, Offset),
    ) {
        let parts = i64::try_from(self.dice.between(1, 9)).expect("small");
        let size = ((to - from) / parts).clamp(1, MAX_FILLER);
        let Some(term) = self.session(at, session).and_then(|open| open.link.term()) else { return };
        let fill = Fill {
            mirror,
            ticket,
            term,
            to,
            size,
            next: from,
            sequence: 0,
            confirmed: from,
            in_flight: 0,
            known: false,
        };
        self.gateway(at).brokers.fills.insert((session, place), fill);
        let log = self.cluster.partitions.get(&place).map(|hosted| &hosted.log);
        let Some(log) = log.filter(|log| log.log_end() == from && log.high_watermark() == from) else {
            return self.end_fill(at, (session, place), Err("the log ends elsewhere".to_owned()));
        };
        let sequence = match log.last_sequence(Self::producer_id()) {
            Some(-1) => 0,
            Some(last) => advance(last, 1),
            None => i32::try_from(from & i64::from(i32::MAX)).expect("masked"),
        };
        if let Some(fill) = self.gateway(at).brokers.fills.get_mut(&(session, place)) {
            fill.sequence = sequence;
        }
        self.ghost.count("fast-forward");
        self.send_filler(at, (session, place));
    }

    fn send_filler(&mut self, at: usize, key: (u64, Place)) {
        let now_ms = self.wall_ms();
        while let Some(fill) = self.gateway(at).brokers.fills.get_mut(&key) {
            let depth = if fill.known { MAX_IN_FLIGHT } else { 1 };
            if fill.next == fill.to || fill.in_flight >= depth {
                return;
            }
            let count = fill.size.min(fill.to - fill.next);
            let records = i32::try_from(count).expect("limited");
            let batch = BatchBuilder::new(0)
                .records(records)
                .timestamps(now_ms, now_ms)
                .stamp(Self::producer_id(), 0, fill.sequence)
                .payload(0)
                .bytes();
            let intent = Intent { term: fill.term, offset: fill.next };
            let (session, place) = key;
            let what = What::Filler(batch);
            let request = Request { session, place, mirror: fill.mirror, ticket: fill.ticket, what, intent };
            fill.sequence = advance(fill.sequence, records);
            fill.next += count;
            fill.in_flight += 1;
            let verified = self.session(at, session).and_then(|open| open.verified.get(&place).copied());
            if self.queue_request(at, verified.as_ref(), request).is_err() {
                return self.end_fill(at, key, Err("the connection is another".to_owned()));
            }
        }
    }

    pub(super) fn filler_answered(&mut self, at: usize, request: &Request, answer: Answer) {
        let key = (request.session, request.place);
        let What::Filler(batch) = &request.what else { return };
        let Some(fill) = self.gateway(at).brokers.fills.get_mut(&key).filter(|fill| fill.ticket == request.ticket)
        else {
            return;
        };
        if answer != (Answer::Appended { base_offset: request.intent.offset }) {
            let reason = format!("{answer:?}: {:?}", doubt("filler"));
            return self.end_fill(at, key, Err(reason));
        }
        let count = tombolo_proto::batch::Batch::parse(batch.clone()).expect("made here").record_count();
        fill.in_flight -= 1;
        fill.known = true;
        fill.confirmed = request.intent.offset + i64::from(count);
        if fill.confirmed < fill.to {
            return self.send_filler(at, key);
        }
        let wait = self.broker_delay();
        self.gateway_after(at, wait, GatewayEvent::DeleteFiller { session: key.0, place: key.1 });
    }

    pub(super) fn delete_filler(&mut self, at: usize, key: (u64, Place)) {
        let Some(to) = self.gateway(at).brokers.fills.get(&key).map(|fill| fill.to) else { return };
        let now = self.now;
        let permitted = self.permits(at, key.0, now);
        let deleted = permitted && self.delete_records(key.1, to);
        self.end_fill(at, key, if deleted { Ok(()) } else { Err("records cannot be deleted".to_owned()) });
    }

    pub(super) fn end_fill(&mut self, at: usize, key: (u64, Place), result: Result<(), String>) {
        let Some(fill) = self.gateway(at).brokers.fills.remove(&key) else { return };
        self.trace(|| format!("session {}: {:?} fast-forward: {result:?}", key.0, key.1));
        let (mirror, partition, ticket) = (MirrorId(fill.mirror), key.1.1, fill.ticket);
        self.drive(at, key.0, CloudInput::FastForwarded { mirror, partition, ticket, result });
    }

    /// `DeleteRecords`; false where it cannot be had, or the answer is lost.
    pub(super) fn delete_records(&mut self, place: Place, below: Offset) -> bool {
        let fails = self.now < self.reads_fail_until && self.dice.chance(500);
        let hosted = self.cluster.partitions.get_mut(&place).filter(|hosted| hosted.leader.is_some());
        let Some(hosted) = hosted.filter(|_| !fails) else { return false };
        let before = hosted.log.batches().to_vec();
        let deleted = hosted.log.delete_below(below).is_ok();
        self.judge_start(place, &before);
        deleted && !self.dice.chance(50)
    }
}
