//! The cloud cluster as a session writes to it: under a lease, which every connection asks before each write.
//!
//! A lease that lapses because the machine or the registry was slow for a moment is back with the next look, and a write
//! that it refused has done nothing. So a write waits for it, and is no failure.

use std::sync::Arc;

use tombolo_kafka::error::{ConnectionErrorKind, KafkaErrorKind};
use tombolo_kafka::{ClientSettings, Cluster, Connection, KafkaError};
use tombolo_proto::lease::LeaseError;

use crate::registry::{Lapse, SessionLease};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
}

/// Clones share connections and the lease.
#[derive(Debug, Clone)]
pub(crate) struct LeasedCluster {
    pub(crate) cluster: Cluster,
    pub(crate) lease: Arc<SessionLease>,
}

impl LeasedCluster {
    pub(crate) fn new(settings: ClientSettings, lease: Arc<SessionLease>) -> Self {
        let guard = Arc::clone(&lease);
        Self { cluster: Cluster::new(settings).with_write_guard(Arc::new(move || guard.guard())), lease }
    }

    /// A connection of one's own to a broker, made anew where it is broken, once the lease permits writing. Waits for the
    /// lease no longer than [`SessionLease::soon`] does.
    pub(crate) async fn ready(&self, connection: &mut Option<Connection>, broker: i32) -> Result<Connection, NotReady> {
        self.lease.soon().await?;
        match connection {
            Some(open) if !open.is_poisoned() => Ok(open.clone()),
            Some(_) | None => {
                let open = self.cluster.connect(broker).await?;
                *connection = Some(open.clone());
                Ok(open)
            }
        }
    }
}

impl Lapse for KafkaError {
    /// Of the request, or of the rest of it.
    fn is_lapse(&self) -> bool {
        match self.kind() {
            KafkaErrorKind::WriteRefused(_) => true,
            KafkaErrorKind::Connection { cause, .. } => matches!(cause.kind, ConnectionErrorKind::WriteRefused(_)),
            KafkaErrorKind::Broker { .. }
            | KafkaErrorKind::Unsupported { .. }
            | KafkaErrorKind::Busy { .. }
            | KafkaErrorKind::NoLeader
            | KafkaErrorKind::UnknownBroker(_)
            | KafkaErrorKind::Unreachable { .. }
            | KafkaErrorKind::Answer(_)
            | KafkaErrorKind::Encode(_) => false,
        }
    }
}

impl Lapse for NotReady {
    fn is_lapse(&self) -> bool {
        match self {
            Self::Lease(_) => false,
            Self::Kafka(error) => error.is_lapse(),
        }
    }
}
