//! Ledgers, and what else sessions leave to later ones, read and written: compare-and-append, and read back, as terms are.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tombolo_kafka::error::ErrorCode;
use tombolo_proto::id::LinkName;
use tombolo_proto::lease::LeaseError;

use super::ledger::{Ledger, LedgerEntry, LedgerFull, LedgerKey};
use super::{CLAIM_DEADLINE, FIRST_BACKOFF, LAST_BACKOFF, Last, Registry, SessionLease, StoreError, skipper};

/// Ledgers of the partitions of each link.
pub(crate) type Ledgers = BTreeMap<LinkName, Vec<(LedgerKey, Ledger)>>;

/// Why the registry does not hold an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoteError {
    #[error("not within {CLAIM_DEADLINE:?}{}", Last(last.as_ref()))]
    Deadline { last: Option<StoreError> },
    #[error(transparent)]
    Full(#[from] LedgerFull),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Who does not hold the link has no word in what its mirrors lack.
    #[error("the session may not write: {0}")]
    Lease(#[from] LeaseError),
}

impl Registry {
    /// What is known of a partition; empty where nothing is.
    pub(crate) fn ledger(&self, key: &LedgerKey) -> Ledger {
        self.shared.view().ledgers.get(key).cloned().unwrap_or_default()
    }

    /// All that the registry has.
    pub(crate) fn ledgers(&self) -> Ledgers {
        let mut links = Ledgers::new();
        for (key, ledger) in &self.shared.view().ledgers {
            links.entry(key.link.clone()).or_default().push((key.clone(), ledger.clone()));
        }
        links
    }

    /// Producer ids under which empty transactions of the link were written.
    pub(crate) fn skippers(&self, link: &LinkName) -> BTreeSet<i64> {
        self.shared.view().skippers.get(link).cloned().unwrap_or_default()
    }

    /// Adds to the ledger of a partition, on behalf of a session that holds the link. Once this has returned without an
    /// error, every gateway reads it.
    pub(crate) async fn note(
        &self,
        lease: &SessionLease,
        key: &LedgerKey,
        entry: &LedgerEntry,
    ) -> Result<(), NoteError> {
        let missing = || {
            let next = self.ledger(key).with(entry)?;
            Ok(next.map(|next| (key.bytes(), next.value(key))))
        };
        self.write(lease, missing).await
    }

    /// Adds a producer id under which empty transactions of the link are to be written; as [`Registry::note`].
    pub(crate) async fn note_skipper(
        &self,
        lease: &SessionLease,
        link: &LinkName,
        producer_id: i64,
    ) -> Result<(), NoteError> {
        let missing = || {
            let mut ids = self.skippers(link);
            let new = ids.insert(producer_id);
            Ok(new.then(|| (skipper::key(link), skipper::value(link, &ids))))
        };
        self.write(lease, missing).await
    }

    /// Appends what is `missing`, key and value, until nothing is.
    async fn write(
        &self,
        lease: &SessionLease,
        missing: impl Fn() -> Result<Option<(Bytes, Bytes)>, LedgerFull> + Send + Sync,
    ) -> Result<(), NoteError> {
        let mut last = None;
        let written = tokio::time::timeout(CLAIM_DEADLINE, self.write_in_turn(lease, &missing, &mut last)).await;
        written.unwrap_or(Err(NoteError::Deadline { last }))
    }

    async fn write_in_turn(
        &self,
        lease: &SessionLease,
        missing: &(impl Fn() -> Result<Option<(Bytes, Bytes)>, LedgerFull> + Send + Sync),
        last: &mut Option<StoreError>,
    ) -> Result<(), NoteError> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            // Not in turn: others' claims need not wait for this lease.
            lease.settled().await?;
            let turn = self.shared.turn.lock().await;
            let tried = self.try_write(lease, missing).await;
            drop(turn);
            match tried {
                Ok(true) => return Ok(()),
                // Somebody else was faster.
                Ok(false) => {}
                Err(NoteError::Store(error)) if error.retriable() => *last = Some(error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Whether the registry holds it now.
    async fn try_write(
        &self,
        lease: &SessionLease,
        missing: &(impl Fn() -> Result<Option<(Bytes, Bytes)>, LedgerFull> + Send + Sync),
    ) -> Result<bool, NoteError> {
        let shared = &*self.shared;
        let end = shared.store.end().await?;
        shared.followed_to(end.offset).await;
        let Some((key, value)) = missing()? else { return Ok(true) };
        // A newer claim may have been read just now; one that comes later makes the append fail.
        match lease.permits() {
            Ok(()) => {}
            Err(LeaseError::Lapsed) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let answer = shared.store.append(key, value, end).await;
        let appended_to = match &answer {
            Ok(offset) => offset + 1,
            // Not appended for certain, or perhaps: the topic tells.
            Err(_) => shared.store.end().await?.offset,
        };
        shared.followed_to(appended_to).await;
        if missing()?.is_none() {
            return Ok(true);
        }
        match answer {
            Err(error) if error.code() != Some(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER) => Err(error.into()),
            Ok(_) | Err(_) => Ok(false),
        }
    }
}
