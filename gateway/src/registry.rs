//! The registry: which session holds which link, in a compacted topic of the cloud cluster that every gateway reads and
//! writes (design: one writer per link, term and lease).
//!
//! One task follows the topic. A term is taken by appending a record at the log's end: of two writers at one end the
//! broker takes one, and neither believes it was he before he has read his record back.
//!
//! Must never: give a session a term it did not read back; count a look at the registry from later than it was asked
//! for.

mod incarnation;
mod lease;
mod ledger;
mod note;
mod record;
mod skipper;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::watch;
use tombolo_kafka::Cluster;
use tombolo_kafka::error::ErrorCode;
use tombolo_kafka::fetch::{FetchOptions, FetchPosition, FetchSession, FetchedPartition};
use tombolo_kafka::records;
use tombolo_proto::batch::{self, Batch};
use tombolo_proto::id::{LinkName, Offset, Term, Time};
use tombolo_service::readiness::Latch;

use crate::clock::Clock;
use crate::settings::RegistrySettings;
pub(crate) use incarnation::{Claimant, Replaced};
use incarnation::{Former, Incarnations};
pub(crate) use lease::{Lapse, SessionLease};
pub(crate) use ledger::{Ledger, LedgerEntry, LedgerKey, LedgerKind};
pub(crate) use note::{Ledgers, NoteError};
use record::{RecordError, TermRecord};
pub(crate) use store::{Store, StoreError};

/// How long the broker holds back an answer that has nothing new: several looks fit one lease.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A look that takes longer is given up with its connection.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of one look; records are some hundred bytes each.
const LOOK_BYTES: i32 = 1 << 20;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
/// To take a term, waiting turns and retries included.
const CLAIM_DEADLINE: Duration = Duration::from_secs(30);

/// A term that was taken.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) lease: Arc<SessionLease>,
    /// When every earlier holder in another process has lost its lease and its requests have settled.
    pub(crate) write_after: Time,
    /// What a successor waits where the earlier holder may still be at it.
    pub(crate) patience: Duration,
    /// When the agent's process was first seen, where it tells who it is.
    pub(crate) agent_since: Option<SystemTime>,
}

/// Why no term could be taken.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("not within {CLAIM_DEADLINE:?}{}", Last(last.as_ref()))]
    Deadline { last: Option<StoreError> },
    #[error(transparent)]
    Refused(StoreError),
    /// Another process of the agent's has taken the link.
    #[error("{0}")]
    Replaced(Replaced),
}

struct Last<'a>(Option<&'a StoreError>);

impl std::fmt::Display for Last<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |error| write!(f, "; last: {error}"))
    }
}

/// Handle of the registry; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    lease: Duration,
    settle: Duration,
    /// Tells this process's records from others'.
    instance: u128,
    clock: Clock,
    view: Mutex<View>,
    position: watch::Sender<Offset>,
    /// One claim at a time: claims of one process would only refuse each other.
    turn: tokio::sync::Mutex<()>,
}

/// What the follower has read.
#[derive(Debug, Default)]
struct View {
    links: BTreeMap<LinkName, Held>,
    ledgers: BTreeMap<LedgerKey, Ledger>,
    /// Producer ids of each link's empty transactions.
    skippers: BTreeMap<LinkName, BTreeSet<i64>>,
    leases: Vec<Weak<SessionLease>>,
    /// When the last look at the end was asked for.
    looked: Option<Time>,
    /// Until when holders in other processes may write, by link.
    write_after: BTreeMap<LinkName, Time>,
}

/// Looks fail, one after another.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Time,
    /// Whether the log says so.
    told: bool,
}

/// The latest record of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    term: Term,
    here: bool,
    lease: Duration,
    incarnations: Incarnations,
}

impl Registry {
    pub(crate) fn new(cluster: Cluster, settings: &RegistrySettings, clock: Clock) -> Self {
        let shared = Shared {
            store: Store::new(cluster, settings),
            lease: settings.lease,
            settle: settings.settle,
            instance: rand::random(),
            clock,
            view: Mutex::default(),
            position: watch::Sender::new(0),
            turn: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Follows the topic for as long as the process lives. `followed` is let go of when its end was reached once.
    pub(crate) async fn follow(self, followed: Latch) {
        let mut followed = Some(followed);
        let mut backoff = FIRST_BACKOFF;
        let mut trouble = None;
        loop {
            let error = match self.follow_leader(&mut followed, &mut backoff, &mut trouble).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let now = self.shared.clock.now();
            let trouble = trouble.get_or_insert(Trouble { since: now, told: false });
            // A lease bridges a change of leaders, and a topic just made is not led at once.
            if !trouble.told && (!error.retriable() || now.saturating_sub(trouble.since) >= self.shared.lease) {
                trouble.told = true;
                tracing::warn!(%error, "registry cannot be read; without it no session may write");
            } else {
                tracing::debug!(%error, "registry cannot be read");
            }
            self.shared.store.forget_leader();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn follow_leader(
        &self,
        followed: &mut Option<Latch>,
        backoff: &mut Duration,
        trouble: &mut Option<Trouble>,
    ) -> Result<std::convert::Infallible, StoreError> {
        let shared = &*self.shared;
        let topic_id = shared.store.ensure().await?;
        let leader = shared.store.leader().await?;
        let connection = shared.store.connect(leader).await?;
        let topic = shared.store.topic();
        let at = |offset| FetchPosition { offset, current_leader_epoch: leader.epoch, last_fetched_epoch: None };
        let mut session = FetchSession::new(connection, options());
        session.add(topic, topic_id, 0, at(*shared.position.borrow()));
        let mut high_watermark = None;
        loop {
            let asked_at = shared.clock.now();
            let answer = tokio::time::timeout(LOOK_DEADLINE, session.fetch())
                .await
                .map_err(|_| self.topic_error(ErrorCode::REQUEST_TIMED_OUT))??;
            for partition in answer {
                let next = self.take(&partition)?;
                high_watermark = Some(partition.high_watermark);
                session.advance(topic, 0, at(next));
            }
            if high_watermark.is_some_and(|end| *shared.position.borrow() >= end) {
                self.looked(asked_at);
                *backoff = FIRST_BACKOFF;
                if followed.take().is_some() | trouble.take().is_some() {
                    tracing::info!(%topic, links = shared.view().links.len(), "registry followed to its end");
                }
            }
        }
    }

    /// Takes in one answer and gives the next offset to read.
    fn take(&self, fetched: &FetchedPartition) -> Result<Offset, StoreError> {
        let shared = &*self.shared;
        match fetched.error {
            None => {}
            Some(ErrorCode::OFFSET_OUT_OF_RANGE) => {
                let start = fetched.log_start_offset.max(0);
                tracing::warn!(start, "registry topic does not reach back to where it was read; reading it anew");
                let mut view = shared.view();
                view.links.clear();
                view.ledgers.clear();
                view.skippers.clear();
                drop(view);
                shared.position.send_replace(start);
                return Ok(start);
            }
            Some(code) => return Err(self.topic_error(code)),
        }
        let mut next = *shared.position.borrow();
        for batch in batch::split(fetched.records.clone()) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!(%error, "registry topic holds what is no record batch");
                    break;
                }
            };
            if batch.next_offset() <= next {
                continue;
            }
            if !batch.is_control() {
                self.read(&batch, next);
            }
            next = batch.next_offset();
        }
        shared.position.send_replace(next);
        Ok(next)
    }

    fn read(&self, batch: &Batch, from: Offset) {
        let records = match records::decode_batch(batch) {
            Ok(records) => records,
            Err(error) => {
                tracing::error!(%error, "registry batch cannot be read and is passed over");
                return;
            }
        };
        for record in records.into_iter().filter(|record| record.offset >= from) {
            let (Some(key), Some(value)) = (record.key, record.value) else {
                continue;
            };
            if let Err(error) = self.shared.take_in(&key, &value) {
                tracing::error!(offset = record.offset, %error, "registry record cannot be read and is passed over");
            }
        }
    }

    /// Everything that was appended before `asked_at` has been read.
    fn looked(&self, asked_at: Time) {
        let mut view = self.shared.view();
        view.looked = Some(asked_at);
        let View { links, leases, .. } = &mut *view;
        leases.retain(|lease| {
            let Some(lease) = lease.upgrade() else { return false };
            let newest = links.get(lease.link()).map_or(Term(0), |held| held.term);
            lease.looked(asked_at, newest);
            true
        });
    }

    /// Takes the next term of a link, unless another process of its agent has taken the claimant's place.
    pub(crate) async fn claim(&self, link: &LinkName, claimant: Claimant) -> Result<Claim, ClaimError> {
        let mut last = None;
        let claimed = tokio::time::timeout(CLAIM_DEADLINE, self.claim_in_turn(link, claimant, &mut last)).await;
        claimed.unwrap_or(Err(ClaimError::Deadline { last }))
    }

    async fn claim_in_turn(
        &self,
        link: &LinkName,
        claimant: Claimant,
        last: &mut Option<StoreError>,
    ) -> Result<Claim, ClaimError> {
        let _turn = self.shared.turn.lock().await;
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.try_claim(link, claimant).await {
                Ok(Tried::Taken(claim)) => return Ok(claim),
                Ok(Tried::Replaced(replaced)) => return Err(ClaimError::Replaced(replaced)),
                Ok(Tried::Outrun) => {}
                Err(error) => {
                    let refused = matches!(
                        error.code(),
                        Some(ErrorCode::TOPIC_AUTHORIZATION_FAILED | ErrorCode::CLUSTER_AUTHORIZATION_FAILED)
                    );
                    if refused || matches!(error, StoreError::Missing { .. }) {
                        return Err(ClaimError::Refused(error));
                    }
                    tracing::debug!(%link, %error, "term not taken yet");
                    *last = Some(error);
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn try_claim(&self, link: &LinkName, claimant: Claimant) -> Result<Tried, StoreError> {
        let shared = &*self.shared;
        let end = shared.store.end().await?;
        shared.followed_to(end.offset).await;
        let before = shared.view().links.get(link).cloned();
        let known = before.as_ref().map_or_else(Incarnations::default, |held| held.incarnations.clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (incarnations, former) = match known.claim(claimant, now) {
            Ok(next) => next,
            Err(replaced) => return Ok(Tried::Replaced(replaced)),
        };
        let term = Term(before.as_ref().map_or(0, |held| held.term.0) + 1);
        let lease_ms = u64::try_from(shared.lease.as_millis()).unwrap_or(u64::MAX);
        let mut record = TermRecord::new(link, term, shared.instance, lease_ms);
        incarnations.write(&mut record);
        let answer = shared.store.append(TermRecord::key(link), record.value(), end).await;
        let appended_to = match &answer {
            Ok(offset) => offset + 1,
            // Not appended for certain, or perhaps: the topic tells.
            Err(_) => shared.store.end().await?.offset,
        };
        shared.followed_to(appended_to).await;
        let claim = shared.believe(link, term, before.as_ref());
        match (claim, answer) {
            (Some(claim), _) => {
                if let Some(former) = former {
                    tell_replaced(link, claimant, &former);
                }
                Ok(Tried::Taken(claim))
            }
            (None, Err(error)) if error.code() != Some(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER) => Err(error),
            (None, _) => Ok(Tried::Outrun),
        }
    }

    fn topic_error(&self, code: ErrorCode) -> StoreError {
        StoreError::Topic { topic: Arc::clone(self.shared.store.topic()), code }
    }
}

/// What came of one try to take a term.
enum Tried {
    Taken(Claim),
    /// Somebody else was faster.
    Outrun,
    Replaced(Replaced),
}

fn tell_replaced(link: &LinkName, claimant: Claimant, former: &Former) {
    let (now_at, before_at) = (claimant.address, &former.address);
    if former.still_there {
        tracing::warn!(
            %link, %now_at, %before_at,
            "another agent took the link while the one before was at work: do two boxes use its certificate?"
        );
    } else {
        tracing::info!(%link, %now_at, %before_at, "the link's agent was started anew");
    }
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records of kinds that this build does not know are a newer gateway's.
    fn take_in(&self, key: &Bytes, value: &Bytes) -> Result<(), RecordError> {
        if let Some(read) = record::read(key, value) {
            let (link, term) = read?;
            self.learn(link, &term);
        } else if let Some(read) = ledger::read(key, value) {
            let (key, ledger) = read?;
            self.view().ledgers.insert(key, ledger);
        } else if let Some(read) = skipper::read(key, value) {
            let (link, ids) = read?;
            self.view().skippers.insert(link, ids);
        }
        Ok(())
    }

    fn learn(&self, link: LinkName, record: &TermRecord) {
        let held = Held {
            term: Term(record.term),
            here: record.is_of(self.instance),
            lease: Duration::from_millis(record.lease_ms),
            incarnations: Incarnations::of_record(record),
        };
        // Later records win: of two gateways that take one term, the broker appends one.
        self.view().links.insert(link, held);
    }

    /// Waits until the follower has read everything below `offset`. The caller has a deadline.
    async fn followed_to(&self, offset: Offset) {
        let mut positions = self.position.subscribe();
        // The sender lives in `self`: there is an answer.
        drop(positions.wait_for(|&position| position >= offset).await);
    }

    /// The claim, if the latest record of the link is ours.
    fn believe(&self, link: &LinkName, term: Term, before: Option<&Held>) -> Option<Claim> {
        let now = self.clock.now();
        let patience = self.lease.max(before.map_or(Duration::ZERO, |held| held.lease)) + self.settle;
        let mut view = self.view();
        let held = view.links.get(link).filter(|held| held.term == term && held.here)?;
        let agent_since = held.incarnations.since();
        let earliest = match before {
            Some(before) if !before.here => now + patience,
            Some(_) | None => now,
        };
        // A holder before the last one may be in another process, and not yet over.
        let carried = view.write_after.get(link).copied().unwrap_or_default();
        let write_after = earliest.max(carried);
        view.write_after.insert(link.clone(), write_after);
        let lease = Arc::new(SessionLease::new(link.clone(), term, self.lease, self.clock));
        if let Some(looked) = view.looked {
            lease.looked(looked, term);
        }
        view.leases.push(Arc::downgrade(&lease));
        Some(Claim { lease, write_after, patience, agent_since })
    }
}

fn options() -> FetchOptions {
    FetchOptions {
        max_wait: LOOK_EVERY,
        min_bytes: 1,
        max_bytes: LOOK_BYTES,
        partition_max_bytes: LOOK_BYTES,
        read_committed: false,
        sessions: true,
    }
}

#[cfg(test)]
#[path = "registry/registry_test.rs"]
mod tests;
