//! Whether the gateway may write markers, asked once in a session and before the first mirror that will need them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tombolo_kafka::Cluster;
use tombolo_kafka::admin::{self, MarkerRange, MarkerWriter};
use tombolo_kafka::error::{ErrorCode, KafkaErrorKind};

use crate::leased::{LeasedCluster, NotReady};
use crate::registry::SessionLease;

/// What gives the right, for the operator.
const ACL_COMMAND: &str = "kafka-acls.sh --add --allow-principal User:NAME-OF-THE-GATEWAY --operation Alter --cluster";

/// No topic can have this name, so nothing is ever appended for asking: a broker looks at the right before it looks for the
/// topic (`KafkaApis.handleWriteTxnMarkersRequest`).
const NO_TOPIC: &str = "no/topic";

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MarkerRight {
    Granted,
    /// Why gaps cannot be mirrored.
    Missing(String),
}

/// The question, asked when somebody wants to know.
#[derive(Debug)]
pub(crate) struct MarkerRights {
    cluster: Cluster,
    /// Of the session, which its connections ask.
    lease: Option<Arc<SessionLease>>,
    writer: MarkerWriter,
    right: OnceCell<MarkerRight>,
}

impl MarkerRights {
    pub(crate) fn new(cluster: Cluster, writer: MarkerWriter) -> Self {
        Self { cluster, lease: None, writer, right: OnceCell::new() }
    }

    pub(crate) fn of_session(cloud: LeasedCluster, writer: MarkerWriter) -> Self {
        let LeasedCluster { cluster, lease } = cloud;
        Self { cluster, lease: Some(lease), writer, right: OnceCell::new() }
    }

    /// The answer, which stays for the session; an error where no broker gave one.
    pub(crate) async fn ask(&self) -> Result<MarkerRight, NotReady> {
        let probe = async || match &self.lease {
            Some(lease) => lease.patiently(|| self.probe()).await,
            None => self.probe().await,
        };
        self.right.get_or_try_init(probe).await.cloned()
    }

    async fn probe(&self) -> Result<MarkerRight, NotReady> {
        let connection = self.cluster.controller().await?;
        let range = MarkerRange { topic: NO_TOPIC.into(), partition: 0, count: 1 };
        let answer = admin::send_txn_markers(&connection, self.writer, vec![range], Duration::ZERO).await;
        let right = match answer {
            Ok(answers) => match answers.into_iter().next().map(|answer| answer.result) {
                Some(Err(ErrorCode::CLUSTER_AUTHORIZATION_FAILED)) => {
                    MarkerRight::Missing(format!("the gateway lacks ALTER on the cluster: {ACL_COMMAND}"))
                }
                Some(_) | None => MarkerRight::Granted,
            },
            Err(error) if matches!(error.kind(), KafkaErrorKind::Unsupported { .. }) => {
                MarkerRight::Missing(error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        Ok(right)
    }
}
