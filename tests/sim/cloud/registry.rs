//! Terms and ledgers in the registry topic, written by compare-and-append, and the looks that keep a lease alive.

use std::collections::BTreeMap;

use tombolo_proto::cloud::CloudInput;
use tombolo_proto::id::{MirrorId, Offset, Term, Time};
use tombolo_proto::lease::Lease;

use crate::bugs::Bug;
use crate::world::{GatewayEvent, Place, World};

/// Times a gateway tries to append its term before it gives up the session.
const MAX_TRIES: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    process: u64,
    session: u64,
}

/// Why a mirror's offsets are not the source's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The source's log began above them.
    Start,
    /// The source deleted them before they were mirrored.
    Loss,
}

/// A line of a partition's ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) reason: Reason,
    pub(crate) from: Offset,
    pub(crate) to: Offset,
}

/// A line that a session wants in a ledger.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToLedger {
    pub(crate) session: u64,
    pub(crate) mirror: u32,
    pub(crate) place: Place,
    pub(crate) ticket: u64,
    pub(crate) entry: Entry,
}

/// The registry topic: the n-th record is term n; ledgers beside.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    records: Vec<Record>,
    ledgers: BTreeMap<Place, Vec<Entry>>,
}

impl Registry {
    /// The ledger of a partition.
    pub(crate) fn ledger(&self, place: Place) -> &[Entry] {
        self.ledgers.get(&place).map_or(&[], Vec::as_slice)
    }

    /// Whether the ledger has all of `from..to` for that reason.
    pub(crate) fn covers(&self, place: Place, reason: Reason, (from, to): (Offset, Offset)) -> bool {
        let mut reached = from;
        for entry in self.ledger(place).iter().filter(|entry| entry.reason == reason) {
            if entry.from <= reached {
                reached = reached.max(entry.to);
            }
        }
        reached >= to
    }

    /// Where the mirror was last made to start.
    pub(super) fn starting(&self, place: Place) -> Option<Offset> {
        self.ledger(place).iter().rev().find(|entry| entry.reason == Reason::Start).map(|entry| entry.to)
    }

    fn newest(&self) -> u64 {
        u64::try_from(self.records.len()).expect("small")
    }

    fn of_term(&self, term: u64) -> Option<Record> {
        let at = usize::try_from(term).ok()?.checked_sub(1)?;
        self.records.get(at).copied()
    }
}

impl World {
    pub(super) fn registry_delay(&mut self) -> Time {
        if self.now < self.registry_slow_until { self.dice.millis(200, 4_000) } else { self.dice.millis(1, 60) }
    }

    pub(super) fn on_registry(&mut self, at: usize, process: u64, event: GatewayEvent) {
        let next = match event {
            GatewayEvent::ReadRegistry { session, tries } => self.read_registry(at, process, session, tries),
            GatewayEvent::AppendTerm { session, tries, read, asked_at } => {
                Some(self.append_term(Record { process, session }, tries, read, asked_at))
            }
            GatewayEvent::Claimed { session, term, asked_at } => {
                self.claimed(at, process, session, term, asked_at);
                return;
            }
            GatewayEvent::Look { session } => Some(GatewayEvent::LookRead { session, asked_at: self.now }),
            GatewayEvent::LookRead { session, asked_at } => {
                Some(GatewayEvent::Looked { session, asked_at, newest: self.registry.newest() })
            }
            GatewayEvent::Looked { session, asked_at, newest } => {
                self.looked(at, session, asked_at, Term(newest));
                return;
            }
            GatewayEvent::WriteLedger(line) => {
                self.write_ledger(at, line);
                return;
            }
            _ => return,
        };
        if let Some(next) = next {
            let wait = self.registry_delay();
            self.gateway_after(at, wait, next);
        }
    }

    fn read_registry(&mut self, at: usize, process: u64, session: u64, tries: u32) -> Option<GatewayEvent> {
        let newest = self.registry.newest();
        let own = Record { process, session };
        let asked_at = self.now;
        if self.registry.of_term(newest) == Some(own) {
            // The answer to an earlier try was lost.
            self.ghost.count("term read back");
            return Some(GatewayEvent::Claimed { session, term: newest, asked_at });
        }
        if tries == MAX_TRIES {
            let reason = "others were quicker".to_owned();
            self.drive(at, session, CloudInput::ClaimFailed { reason });
            return None;
        }
        Some(GatewayEvent::AppendTerm { session, tries, read: newest, asked_at })
    }

    fn append_term(&mut self, record: Record, tries: u32, read: u64, asked_at: Time) -> GatewayEvent {
        let Record { process, session } = record;
        let again = GatewayEvent::ReadRegistry { session, tries: tries + 1 };
        if self.registry.newest() != read {
            self.ghost.count("term taken by another");
            return again;
        }
        self.registry.records.push(record);
        self.trace(|| format!("registry: term {} is session {session} of process {process}", read + 1));
        let answer_is_lost = self.dice.chance(100);
        if answer_is_lost { again } else { GatewayEvent::Claimed { session, term: read + 1, asked_at } }
    }

    fn claimed(&mut self, at: usize, process: u64, id: u64, term: u64, asked_at: Time) {
        let now = self.now;
        let before = self.registry.of_term(term.saturating_sub(1));
        let (lease, settle) = (self.plan.lease, self.plan.settle);
        let gateway = self.gateway(at);
        if !gateway.sessions.contains_key(&id) {
            return;
        }
        gateway.write_after = match before {
            None => now,
            // The same process asks no lease of itself, but markers of the session before may still be appended.
            Some(before) if before.process == process && gateway.brokers.skips_anywhere(now) => {
                gateway.write_after.max(now + settle)
            }
            Some(before) if before.process == process => gateway.write_after.max(now),
            Some(_) => now + lease + settle,
        };
        let write_after = gateway.write_after;
        if write_after > now {
            self.ghost.count("waited for lease and settle time");
        }
        for other in self.session_ids(at) {
            if other != id {
                self.ghost.count("superseded");
                self.drive(at, other, CloudInput::Superseded { newer: Term(term) });
            }
        }
        if let Some(session) = self.session(at, id) {
            let mut held = Lease::new(Term(term), lease);
            // Our record was the newest when it was appended, which was after this.
            held.looked(asked_at, Term(term));
            session.lease = Some(held);
        }
        self.drive(at, id, CloudInput::Claimed { term: Term(term), write_after });
        self.gateway_after(at, Time::ZERO, GatewayEvent::Look { session: id });
    }

    fn looked(&mut self, at: usize, id: u64, asked_at: Time, newest: Term) {
        let now = self.now;
        let every = self.plan.lease / 3;
        let Some(session) = self.session(at, id) else { return };
        let Some(lease) = &mut session.lease else { return };
        lease.looked(asked_at, newest);
        if newest > lease.term() {
            self.ghost.count("superseded");
            self.drive(at, id, CloudInput::Superseded { newer: newest });
            return;
        }
        let wait = (asked_at + every).saturating_sub(now);
        self.gateway_after(at, wait, GatewayEvent::Look { session: id });
    }

    /// A line goes into a ledger, and what waited for it goes on.
    fn write_ledger(&mut self, at: usize, line: ToLedger) {
        let ToLedger { session, mirror, place, ticket, entry } = line;
        let now = self.now;
        let (written, answered) = (!self.dice.chance(40), !self.dice.chance(40));
        let permitted = self.permits(at, session, now);
        self.trace(|| format!("registry: {place:?} {entry:?} of session {session}, written {written}"));
        let forgets = self.plan.bug == Some(Bug::LossUnrecorded) && entry.reason == Reason::Loss;
        if permitted && written && !forgets {
            self.registry.ledgers.entry(place).or_default().push(entry);
            self.judge_ledger(place, entry);
        }
        let result =
            if permitted && written && answered { Ok(()) } else { Err("the registry did not answer".to_owned()) };
        let (mirror_id, partition) = (MirrorId(mirror), place.1);
        let input = match (entry.reason, result) {
            (Reason::Start, Ok(())) => {
                return self.fill(at, (session, place), (mirror, ticket), (entry.from, entry.to));
            }
            (Reason::Start, result) => CloudInput::FastForwarded { mirror: mirror_id, partition, ticket, result },
            (Reason::Loss, result) => CloudInput::LossRecorded { mirror: mirror_id, partition, ticket, result },
        };
        self.drive(at, session, input);
    }
}
