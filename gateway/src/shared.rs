//! What the sessions of one gateway share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tombolo_kafka::{ClientSettings, Cluster};
use tombolo_proto::id::{LinkName, Time, TopicName};
use tombolo_proto::mirror::MARKER_SETTLE;

use crate::clock::Clock;
use crate::registry::Registry;
use crate::settings::{Links, Settings};
use crate::status::Board;
use crate::topics::{Kept, Topics};

/// Connections of one link at a time: one that holds it, one that takes it over, one that is going.
const MAX_CONNECTIONS_OF_LINK: usize = 3;
/// Credit is handed out in units of this many bytes.
const CREDIT_UNIT: usize = 1 << 10;

/// Everything that outlives a session.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) topics: Topics,
    pub(crate) board: Board,
    /// The operator's links, as last read.
    pub(crate) links: watch::Sender<Arc<Links>>,
    credit: Arc<Semaphore>,
    present: Mutex<BTreeMap<LinkName, Vec<Present>>>,
    /// When markers that sessions of a link left behind here, unanswered, have settled.
    late_markers: Mutex<BTreeMap<LinkName, Time>>,
    /// What sessions of a link left behind here knew of its mirror topics.
    kept: Mutex<BTreeMap<(LinkName, TopicName), Kept>>,
    next_id: AtomicU64,
}

#[derive(Debug)]
struct Present {
    id: u64,
    gone: CancellationToken,
}

/// A connection's place among those of its link; dropping it says that nothing of the session is left.
#[derive(Debug)]
pub(crate) struct Presence {
    shared: Arc<Shared>,
    link: LinkName,
    id: u64,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let clock = Clock::start();
        let cluster = Cluster::new(settings.cloud.clone());
        Arc::new(Self {
            clock,
            registry: Registry::new(cluster.clone(), &settings.registry, clock),
            topics: Topics::new(cluster, settings.memory.max_frame, settings.retention),
            board: Board::default(),
            links: watch::Sender::new(Arc::new(settings.links.clone())),
            credit: Arc::new(Semaphore::new(settings.memory.credit_total / CREDIT_UNIT)),
            present: Mutex::default(),
            late_markers: Mutex::default(),
            kept: Mutex::default(),
            next_id: AtomicU64::new(0),
            settings,
        })
    }

    /// How sessions reach the cloud cluster to write: a connection that is not acknowledged must die before a successor
    /// may write.
    pub(crate) fn write_settings(&self) -> ClientSettings {
        self.settings.cloud.clone().with_tcp_user_timeout(self.settings.registry.lease * 2 / 3)
    }

    /// Memory for one link's frames; waits for a link to leave.
    pub(crate) async fn credit(&self) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(self.settings.memory.credit_per_link / CREDIT_UNIT).unwrap_or(u32::MAX);
        Arc::clone(&self.credit).acquire_many_owned(units).await.ok()
    }

    /// Enters a connection of a link; `None` where there are too many.
    pub(crate) fn enter(self: &Arc<Self>, link: &LinkName) -> Option<Presence> {
        let mut present = self.present();
        let of_link = present.entry(link.clone()).or_default();
        if of_link.len() >= MAX_CONNECTIONS_OF_LINK {
            return None;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        of_link.push(Present { id, gone: CancellationToken::new() });
        Some(Presence { shared: Arc::clone(self), link: link.clone(), id })
    }

    /// A session of the link ends with markers unanswered: a broker may still append them.
    pub(crate) fn leaves_markers(&self, link: &LinkName) {
        let settled = self.clock.now() + self.settings.registry.settle.max(MARKER_SETTLE);
        self.late_markers().insert(link.clone(), settled);
    }

    /// When all that sessions of the link left behind in this process has settled, once none of them is left.
    pub(crate) fn markers_settled(&self, link: &LinkName) -> Time {
        self.late_markers().get(link).copied().unwrap_or_default()
    }

    /// A session of the link ends, and another may go on with the mirror topic.
    pub(crate) fn leave_kept(&self, link: &LinkName, mut kept: Kept) {
        kept.left();
        self.kept().insert((link.clone(), kept.wanted.topic.clone()), kept);
    }

    /// What the last session here knew of a mirror topic.
    pub(crate) fn take_kept(&self, link: &LinkName, topic: &TopicName) -> Option<Kept> {
        self.kept().remove(&(link.clone(), topic.clone()))
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<(LinkName, TopicName), Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late_markers(&self) -> MutexGuard<'_, BTreeMap<LinkName, Time>> {
        self.late_markers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> MutexGuard<'_, BTreeMap<LinkName, Vec<Present>>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presence {
    /// Whether connections that were there before this one still are.
    pub(crate) fn has_earlier(&self) -> bool {
        !self.earlier().is_empty()
    }

    /// Waits until the connections that were there before this one are gone.
    pub(crate) async fn alone(&self) {
        for gone in self.earlier() {
            gone.cancelled().await;
        }
    }

    fn earlier(&self) -> Vec<CancellationToken> {
        self.shared
            .present()
            .get(&self.link)
            .into_iter()
            .flatten()
            .filter(|present| present.id < self.id)
            .map(|present| present.gone.clone())
            .collect()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.shared.present();
        let Some(of_link) = present.get_mut(&self.link) else { return };
        of_link.retain(|present| {
            let own = present.id == self.id;
            if own {
                present.gone.cancel();
            }
            !own
        });
        if of_link.is_empty() {
            present.remove(&self.link);
        }
    }
}
