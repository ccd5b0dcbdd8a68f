//! Single settings changed.

use std::collections::HashMap;
use std::time::Duration;

use kafka_protocol::messages::IncrementalAlterConfigsRequest;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};

use super::{ConfigResource, Refusal, nothing_left, refused};
use crate::connection::Connection;
use crate::error::{AnswerError, Api, KafkaError};
use crate::wire::text;

/// What becomes of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// It gets this value.
    Set {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// It goes back to the cluster's default.
    Reset {
        /// Name.
        name: String,
    },
}

/// Answer for one resource.
#[derive(Debug, Clone)]
pub struct AlterAnswer {
    /// What was to change.
    pub resource: ConfigResource,
    /// All its changes were made, or none.
    pub result: Result<(), Refusal>,
}

/// Changes settings and leaves those not named as they are (KIP-339), or with `validate_only` says whether it would. Send
/// changes of topics to any broker. Needs `ALTER_CONFIGS`. Other brokers see a change a little after the answer. Each
/// resource at most once. Answers come in the order asked.
pub async fn incremental_alter_configs(
    connection: &Connection,
    changes: &[(ConfigResource, Vec<ConfigChange>)],
    validate_only: bool,
) -> Result<Vec<AlterAnswer>, KafkaError> {
    const API: Api = Api::IncrementalAlterConfigs;
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let version = connection.version::<IncrementalAlterConfigsRequest>(i16::MAX)?;
    let wanted = changes.iter().map(|(resource, changes)| {
        let (kind, name) = resource.on_wire();
        AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(&name))
            .with_configs(changes.iter().map(ConfigChange::on_wire).collect())
    });
    let request =
        IncrementalAlterConfigsRequest::default().with_resources(wanted.collect()).with_validate_only(validate_only);
    let answer = connection.call(&request, version, connection.deadline(Duration::ZERO)).await?;
    let mut found: HashMap<_, _> = answer
        .responses
        .iter()
        .map(|result| ((result.resource_type, result.resource_name.to_string()), result))
        .collect();
    let answers = changes
        .iter()
        .map(|(resource, _)| {
            let missing = || KafkaError::answer(API, AnswerError::Missing);
            let answer = found.remove(&resource.on_wire()).ok_or_else(missing)?;
            let result = refused(answer.error_code, answer.error_message.as_ref());
            Ok(AlterAnswer { resource: resource.clone(), result })
        })
        .collect::<Result<_, KafkaError>>()?;
    nothing_left(API, &found)?;
    Ok(answers)
}

impl ConfigChange {
    /// `org.apache.kafka.clients.admin.AlterConfigOp.OpType`: 0 sets, 1 deletes.
    fn on_wire(&self) -> AlterableConfig {
        match self {
            Self::Set { name, value } => {
                AlterableConfig::default().with_name(text(name)).with_config_operation(0).with_value(Some(text(value)))
            }
            Self::Reset { name } => {
                AlterableConfig::default().with_name(text(name)).with_config_operation(1).with_value(None)
            }
        }
    }
}
