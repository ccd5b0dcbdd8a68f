//! What an open session has to show.

use super::{Open, OpenMirror, OpenPartition, Phase};
use crate::cloud::{CloudPartitionStatus, CloudStatus, MirrorState, MirrorStatus};
use crate::id::Partition;

impl Open {
    pub(in crate::cloud) fn status(&self) -> CloudStatus {
        CloudStatus {
            term: Some(self.term),
            source_cluster_id: self.source_cluster_id.clone(),
            agent_software: self.agent_software.clone(),
            held_bytes: self.held_bytes,
            mirrors: self.mirrors.iter().map(mirror_status).collect(),
        }
    }
}

fn mirror_status(mirror: &OpenMirror) -> MirrorStatus {
    let state = match &mirror.phase {
        Phase::AwaitSource => {
            MirrorState::Pending { reason: "the agent has not described the source topic yet".to_owned() }
        }
        Phase::Preparing { reason } => MirrorState::Pending { reason: reason.clone() },
        Phase::Active => MirrorState::Active,
        Phase::Paused => MirrorState::Paused,
        Phase::SourceUnavailable { reason } => MirrorState::SourceUnavailable { reason: reason.clone() },
        Phase::Failed(failure) => MirrorState::Failed(failure.clone()),
    };
    let partition = |(at, open): (usize, &OpenPartition)| CloudPartitionStatus {
        partition: Partition::try_from(at).unwrap_or(Partition::MAX),
        confirmed: open.mirror.progress().confirmed,
        received: open.mirror.progress().received,
        source_high_watermark: open.source_high_watermark,
        held_bytes: open.mirror.held_bytes(),
        log_start: open.mirror.log_start(),
        live: open.mirror.is_live(),
        last_doubt: open.mirror.last_doubt().or_else(|| open.follow.doubt()).map(str::to_owned),
        doing: open.mirror.doing().or_else(|| open.follow.doing()),
        gap_offsets: open.mirror.gap_offsets(),
        rewinds: open.mirror.rewinds(),
    };
    MirrorStatus {
        source: mirror.settings.source.clone(),
        topic: mirror.settings.topic.clone(),
        state,
        partitions: mirror.partitions.iter().enumerate().map(partition).collect(),
    }
}
