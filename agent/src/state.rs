//! `state.redb`: what the site knows of itself over a restart. Its journal is elsewhere.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `last_seen` | a number |
//! | `texts` | `site_id`, `cluster_id`, `filters` | bytes |
//! | `mirrors` | topic | `MirrorRow` |
//! | `partitions` | topic, partition | `PartitionRow` |
//!
//! One row for each partition, so that a changed one rewrites one.
//!
//! Must never: keep the agent from starting because the file is damaged; what is lost with it costs a comparison with
//! the source, not a record.

mod rows;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use tombolo_proto::edge::{Checkpoint, CheckpointMirror};
use tombolo_proto::id::{Partition, TopicName};

use crate::journal::store::{StoreError, contained, corrupt};
use rows::{FiltersRow, MirrorRow, PartitionRow};

/// Version of the format that is written, and the newest that is read.
const FORMAT: u64 = 1;
/// redb's cache: the file is some hundred bytes for each partition.
const CACHE: usize = 1 << 20;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const TEXTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("texts");
const MIRRORS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("mirrors");
const PARTITIONS: TableDefinition<'static, (&str, Partition), &[u8]> = TableDefinition::new("partitions");

const FORMAT_KEY: &str = "format";
const LAST_SEEN_KEY: &str = "last_seen";
const SITE_ID_KEY: &str = "site_id";
const CLUSTER_ID_KEY: &str = "cluster_id";
const FILTERS_KEY: &str = "filters";

/// Why the state is not known or not kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file or its folder cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A newer release wrote it.
    #[error("{} has format {found}, this release reads up to {FORMAT}: run the release that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// It was not read or written. The next call opens it anew.
    #[error("{}: {cause}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What failed.
        cause: String,
    },
}

/// The open file. Calls block; one owner.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    /// `None` after a failure: redb does nothing more with a file that failed once. The next call opens it anew.
    db: Option<Database>,
    site_id: [u8; 16],
    cluster_id: String,
    last_seen: u64,
    /// As in the file, so that a checkpoint writes what has changed.
    filters: Vec<String>,
    mirrors: Vec<CheckpointMirror>,
}

impl State {
    /// Opens the file, or makes one. One that is damaged is renamed to `.damaged` and a new one begun; the text, where
    /// there is one, is a warning that says so and what it costs.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), StateError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = parent.unwrap_or_else(|| Path::new("."));
        let failed = |source| StateError::File { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let damage = match Self::try_open(path) {
            Ok(state) => {
                // The name of a new file.
                File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
                return Ok((state, None));
            }
            Err(error @ (StoreError::Corrupt(_) | StoreError::Medium(_))) => error,
            Err(error) => return Err(state_error(path, error)),
        };
        let aside = path.with_added_extension("damaged");
        fs::rename(path, &aside).map_err(failed)?;
        let state = Self::try_open(path).map_err(|error| state_error(path, error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        let warning = format!(
            "{} was damaged ({damage}) and is now {}: mirrors are compared with the source before they go on, and \
             without the link nothing is journaled until the gateway was reached once",
            path.display(),
            aside.display()
        );
        Ok((state, Some(warning)))
    }

    fn try_open(path: &Path) -> Result<Self, StoreError> {
        contained(|| {
            let db = Builder::new().set_cache_size(CACHE).create(path)?;
            if is_new(&db.begin_read()?)? {
                begin_file(&db)?;
            }
            let view = db.begin_read()?;
            let (site_id, cluster_id, last_seen) = read_identity(&view)?;
            let Checkpoint { filters, mirrors, .. } = read_checkpoint(&view)?;
            Ok(Self { path: path.to_owned(), db: Some(db), site_id, cluster_id, last_seen, filters, mirrors })
        })
    }

    /// Id of the site, made by chance with the file.
    pub fn site_id(&self) -> [u8; 16] {
        self.site_id
    }

    /// Id of the source cluster as it was told last; empty where none was.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The latest time that was ever saved, in seconds since 1970; 0 where none was.
    pub fn last_seen(&self) -> u64 {
        self.last_seen
    }

    /// Keeps the id of the source cluster; durable when it returns. Writes nothing where it is known.
    pub fn set_cluster_id(&mut self, cluster_id: &str) -> Result<(), StateError> {
        if self.cluster_id == cluster_id {
            return Ok(());
        }
        self.with(|db, _| {
            let transaction = begin(db)?;
            transaction.open_table(TEXTS)?.insert(CLUSTER_ID_KEY, cluster_id.as_bytes())?;
            Ok(transaction.commit()?)
        })?;
        cluster_id.clone_into(&mut self.cluster_id);
        Ok(())
    }

    /// What was saved: all partitions of the mirrors.
    pub fn load(&mut self) -> Result<Checkpoint, StateError> {
        self.with(|db, _| read_checkpoint(&db.begin_read()?))
    }

    /// Keeps a checkpoint in one commit; durable when it returns. Filters and mirrors are replaced, partitions are
    /// added to those that are there, and those of topics that are no mirrors go. `now` is in seconds since 1970; an
    /// earlier one than before is ignored.
    pub fn save(&mut self, checkpoint: &Checkpoint, now: u64) -> Result<(), StateError> {
        let last_seen = self.last_seen.max(now);
        self.with(|db, state| {
            let transaction = begin(db)?;
            transaction.open_table(META)?.insert(LAST_SEEN_KEY, last_seen)?;
            if state.filters != checkpoint.filters {
                let row = FiltersRow { filters: checkpoint.filters.clone() }.encode_to_vec();
                transaction.open_table(TEXTS)?.insert(FILTERS_KEY, row.as_slice())?;
            }
            let topics: BTreeSet<&str> = checkpoint.mirrors.iter().map(|mirror| mirror.topic.as_str()).collect();
            if state.mirrors != checkpoint.mirrors {
                write_mirrors(&transaction, &checkpoint.mirrors, &topics)?;
            }
            let mut table = transaction.open_table(PARTITIONS)?;
            for partition in checkpoint.partitions.iter().filter(|partition| topics.contains(partition.topic.as_str()))
            {
                let row = PartitionRow::of(partition).encode_to_vec();
                table.insert((partition.topic.as_str(), partition.partition), row.as_slice())?;
            }
            drop(table);
            Ok(transaction.commit()?)
        })?;
        self.last_seen = last_seen;
        self.filters.clone_from(&checkpoint.filters);
        self.mirrors.clone_from(&checkpoint.mirrors);
        Ok(())
    }

    /// Uses the file; opens it anew where it failed before.
    fn with<T>(&mut self, act: impl FnOnce(&Database, &Self) -> Result<T, StoreError>) -> Result<T, StateError> {
        if self.db.is_none() {
            // What the failed commit has written is known only now.
            let state = Self::try_open(&self.path).map_err(|error| state_error(&self.path, error))?;
            (self.db, self.filters, self.mirrors) = (state.db, state.filters, state.mirrors);
        }
        let done = match &self.db {
            Some(db) => contained(|| act(db, self)),
            None => Err(corrupt("not open")),
        };
        done.map_err(|error| {
            self.db = None;
            state_error(&self.path, error)
        })
    }
}

fn state_error(path: &Path, error: StoreError) -> StateError {
    let path = path.to_owned();
    match error {
        StoreError::Version(found) => StateError::Version { path, found },
        StoreError::Io(cause) | StoreError::Medium(cause) | StoreError::Corrupt(cause) => {
            StateError::Failed { path, cause }
        }
    }
}

fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    Ok(transaction)
}

/// Whether nothing was ever committed: the first commit writes all tables.
fn is_new(view: &ReadTransaction) -> Result<bool, StoreError> {
    Ok(view.list_tables()?.next().is_none())
}

fn begin_file(db: &Database) -> Result<(), StoreError> {
    let transaction = begin(db)?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    let site_id: [u8; 16] = rand::random();
    transaction.open_table(TEXTS)?.insert(SITE_ID_KEY, site_id.as_slice())?;
    drop((transaction.open_table(MIRRORS)?, transaction.open_table(PARTITIONS)?));
    Ok(transaction.commit()?)
}

fn read_identity(view: &ReadTransaction) -> Result<([u8; 16], String, u64), StoreError> {
    let meta = view.open_table(META)?;
    match meta.get(FORMAT_KEY)?.map(|format| format.value()) {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => return Err(StoreError::Version(newer)),
        _ => return Err(corrupt("no format")),
    }
    let last_seen = meta.get(LAST_SEEN_KEY)?.map_or(0, |seen| seen.value());
    let texts = view.open_table(TEXTS)?;
    let site_id = texts.get(SITE_ID_KEY)?.and_then(|id| id.value().try_into().ok());
    let cluster_id = texts.get(CLUSTER_ID_KEY)?.map(|id| String::from_utf8(id.value().to_vec())).transpose();
    Ok((
        site_id.ok_or_else(|| corrupt("no site id"))?,
        cluster_id.map_err(|_| corrupt("the cluster id is no text"))?.unwrap_or_default(),
        last_seen,
    ))
}

fn read_checkpoint(view: &ReadTransaction) -> Result<Checkpoint, StoreError> {
    let mut checkpoint = Checkpoint::default();
    if let Some(row) = view.open_table(TEXTS)?.get(FILTERS_KEY)? {
        checkpoint.filters = FiltersRow::decode(row.value()).map_err(|_| corrupt("filters are malformed"))?.filters;
    }
    for entry in view.open_table(MIRRORS)?.iter()? {
        let (topic, row) = entry?;
        let topic = TopicName::new(topic.value()).map_err(|_| corrupt("a topic's name is none"))?;
        let row = MirrorRow::decode(row.value()).map_err(|_| corrupt("a mirror is malformed"))?;
        checkpoint.mirrors.push(row.mirror(topic).ok_or_else(|| corrupt("a topic's id is none"))?);
    }
    for entry in view.open_table(PARTITIONS)?.iter()? {
        let (key, row) = entry?;
        let (topic, partition) = key.value();
        let topic = TopicName::new(topic).map_err(|_| corrupt("a topic's name is none"))?;
        let row = PartitionRow::decode(row.value()).map_err(|_| corrupt("a partition is malformed"))?;
        checkpoint.partitions.push(row.partition(topic, partition));
    }
    Ok(checkpoint)
}

fn write_mirrors(
    transaction: &WriteTransaction,
    mirrors: &[CheckpointMirror],
    topics: &BTreeSet<&str>,
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(MIRRORS)?;
    table.retain(|topic, _| topics.contains(topic))?;
    for mirror in mirrors {
        table.insert(mirror.topic.as_str(), MirrorRow::of(mirror).encode_to_vec().as_slice())?;
    }
    transaction.open_table(PARTITIONS)?.retain(|(topic, _), _| topics.contains(topic))?;
    Ok(())
}

#[cfg(test)]
#[path = "state/state_test.rs"]
mod tests;
