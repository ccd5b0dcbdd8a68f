//! The schemas against what the codec writes, and against damage.

use bytes::BytesMut;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
    SnapshotId,
};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch as ProduceLeader, NodeEndpoint as ProduceEndpoint,
    PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use proptest::prelude::*;

use super::*;
use crate::wire::{Call, text as string, topic_id};

fn name() -> TopicName {
    TopicName(string("topic"))
}

fn words(version: i16, since: i16) -> Option<StrBytes> {
    (version >= since).then(|| string("words"))
}

fn produce(version: i16) -> ProduceResponse {
    let mut partition = PartitionProduceResponse::default().with_index(1).with_base_offset(5);
    let mut topic = TopicProduceResponse::default();
    let mut answer = ProduceResponse::default();
    if version >= 8 {
        let error = BatchIndexAndErrorMessage::default().with_batch_index_error_message(words(version, 8));
        partition = partition.with_record_errors(vec![error.clone(), error]).with_error_message(words(version, 8));
    }
    if version >= 10 {
        partition.current_leader = ProduceLeader::default().with_leader_id(3.into()).with_leader_epoch(4);
        answer.node_endpoints =
            vec![ProduceEndpoint::default().with_host(string("host")).with_rack(words(version, 10))];
    }
    topic = if version >= 13 { topic.with_topic_id(topic_id([3; 16])) } else { topic.with_name(name()) };
    topic.partition_responses = vec![partition.clone(), partition];
    answer.with_responses(vec![topic.clone(), topic])
}

fn fetch(version: i16) -> FetchResponse {
    let mut partition = PartitionData::default()
        .with_partition_index(2)
        .with_aborted_transactions(Some(vec![AbortedTransaction::default().with_first_offset(8)]))
        .with_records(Some(Bytes::from_static(b"some records")));
    let mut answer = FetchResponse::default();
    if version >= 12 {
        partition.diverging_epoch = EpochEndOffset::default().with_epoch(1).with_end_offset(2);
        partition.current_leader = LeaderIdAndEpoch::default().with_leader_id(1.into()).with_leader_epoch(2);
        partition.snapshot_id = SnapshotId::default().with_end_offset(1).with_epoch(2);
    }
    if version >= 16 {
        answer.node_endpoints = vec![NodeEndpoint::default().with_host(string("host")).with_rack(words(version, 16))];
    }
    let topic = FetchableTopicResponse::default();
    let topic = if version >= 13 { topic.with_topic_id(topic_id([3; 16])) } else { topic.with_topic(name()) };
    answer.with_responses(vec![topic.with_partitions(vec![partition.clone(), PartitionData::default(), partition])])
}

fn list_offsets(_version: i16) -> ListOffsetsResponse {
    let partition = ListOffsetsPartitionResponse::default().with_offset(7);
    let topic =
        ListOffsetsTopicResponse::default().with_name(name()).with_partitions(vec![partition.clone(), partition]);
    ListOffsetsResponse::default().with_topics(vec![topic.clone(), topic])
}

fn metadata(version: i16) -> MetadataResponse {
    let partition = MetadataResponsePartition::default()
        .with_replica_nodes(vec![1.into(), 2.into()])
        .with_isr_nodes(vec![1.into()])
        .with_offline_replicas(if version >= 5 { vec![2.into()] } else { vec![] });
    let mut topic =
        MetadataResponseTopic::default().with_name(Some(name())).with_partitions(vec![partition.clone(), partition]);
    if version >= 10 {
        topic.topic_id = topic_id([4; 16]);
    }
    MetadataResponse::default()
        .with_brokers(vec![MetadataResponseBroker::default().with_host(string("host")).with_rack(words(version, 1))])
        .with_cluster_id(words(version, 2))
        .with_topics(vec![topic.clone(), topic])
}

fn sasl_handshake(_version: i16) -> SaslHandshakeResponse {
    SaslHandshakeResponse::default().with_mechanisms(vec![string("PLAIN"), string("GSSAPI")])
}

fn sasl_authenticate(version: i16) -> SaslAuthenticateResponse {
    SaslAuthenticateResponse::default().with_error_message(words(version, 0)).with_auth_bytes(Bytes::from_static(b"xy"))
}

fn api_versions(version: i16) -> ApiVersionsResponse {
    let mut answer = ApiVersionsResponse::default().with_api_keys(vec![ApiVersion::default(); 60]);
    if version >= 3 {
        answer.supported_features = vec![SupportedFeatureKey::default().with_name(string("a")); 2];
        answer.finalized_features_epoch = 4;
        answer.finalized_features = vec![FinalizedFeatureKey::default().with_name(string("b")); 3];
        answer.zk_migration_ready = true;
    }
    answer
}

fn create_topics(version: i16) -> CreateTopicsResponse {
    let mut topic = CreatableTopicResult::default().with_name(name()).with_error_message(words(version, 0));
    if version >= 5 {
        topic.topic_config_error_code = 29;
        topic.configs =
            Some(vec![CreatableTopicConfigs::default().with_name(string("x")).with_value(words(version, 5)); 2]);
    }
    CreateTopicsResponse::default().with_topics(vec![topic; 2])
}

fn describe_configs(version: i16) -> DescribeConfigsResponse {
    let synonym = DescribeConfigsSynonym::default().with_name(string("s")).with_value(words(version, 0));
    let config = DescribeConfigsResourceResult::default()
        .with_name(string("n"))
        .with_value(words(version, 0))
        .with_synonyms(vec![synonym; 2])
        .with_documentation(words(version, 3));
    let result = DescribeConfigsResult::default().with_resource_name(string("r")).with_configs(vec![config; 2]);
    DescribeConfigsResponse::default().with_results(vec![result; 2])
}

fn create_partitions(version: i16) -> CreatePartitionsResponse {
    let topic = CreatePartitionsTopicResult::default().with_name(name()).with_error_message(words(version, 0));
    CreatePartitionsResponse::default().with_results(vec![topic; 2])
}

fn describe_producers(version: i16) -> DescribeProducersResponse {
    let partition = PartitionResponse::default()
        .with_error_message(words(version, 0))
        .with_active_producers(vec![ProducerState::default(); 3]);
    let topic = TopicResponse::default().with_name(name()).with_partitions(vec![partition; 2]);
    DescribeProducersResponse::default().with_topics(vec![topic; 2])
}

fn find_coordinator(version: i16) -> FindCoordinatorResponse {
    FindCoordinatorResponse::default()
        .with_error_message(words(version, 1))
        .with_node_id(3.into())
        .with_host(string("host"))
}

fn delete_records(_version: i16) -> DeleteRecordsResponse {
    let partition = DeleteRecordsPartitionResult::default().with_low_watermark(7);
    let topic = DeleteRecordsTopicResult::default().with_name(name()).with_partitions(vec![partition; 2]);
    DeleteRecordsResponse::default().with_topics(vec![topic; 2])
}

fn init_producer_id(_version: i16) -> InitProducerIdResponse {
    InitProducerIdResponse::default().with_producer_id(7.into()).with_producer_epoch(2)
}

fn add_partitions_to_txn(_version: i16) -> AddPartitionsToTxnResponse {
    let topic = AddPartitionsToTxnTopicResult::default()
        .with_name(name())
        .with_results_by_partition(vec![AddPartitionsToTxnPartitionResult::default(); 2]);
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(vec![topic; 2])
}

fn end_txn(_version: i16) -> EndTxnResponse {
    EndTxnResponse::default().with_error_code(51)
}

fn write_txn_markers(_version: i16) -> WriteTxnMarkersResponse {
    let topic = WritableTxnMarkerTopicResult::default()
        .with_name(name())
        .with_partitions(vec![WritableTxnMarkerPartitionResult::default(); 2]);
    let marker = WritableTxnMarkerResult::default().with_producer_id(7.into()).with_topics(vec![topic; 2]);
    WriteTxnMarkersResponse::default().with_markers(vec![marker; 2])
}

fn incremental_alter_configs(version: i16) -> IncrementalAlterConfigsResponse {
    let resource =
        AlterConfigsResourceResponse::default().with_error_message(words(version, 0)).with_resource_name(string("r"));
    IncrementalAlterConfigsResponse::default().with_responses(vec![resource; 2])
}

/// A filled answer of every request in every version, and what reads it.
fn samples() -> Samples {
    let mut all = Vec::new();
    sample::<ProduceRequest>(&mut all, produce);
    sample::<FetchRequest>(&mut all, fetch);
    sample::<ListOffsetsRequest>(&mut all, list_offsets);
    sample::<MetadataRequest>(&mut all, metadata);
    sample::<SaslHandshakeRequest>(&mut all, sasl_handshake);
    sample::<SaslAuthenticateRequest>(&mut all, sasl_authenticate);
    sample::<ApiVersionsRequest>(&mut all, api_versions);
    sample::<CreateTopicsRequest>(&mut all, create_topics);
    sample::<DescribeConfigsRequest>(&mut all, describe_configs);
    sample::<CreatePartitionsRequest>(&mut all, create_partitions);
    sample::<DescribeProducersRequest>(&mut all, describe_producers);
    sample::<FindCoordinatorRequest>(&mut all, find_coordinator);
    sample::<DeleteRecordsRequest>(&mut all, delete_records);
    sample::<InitProducerIdRequest>(&mut all, init_producer_id);
    sample::<AddPartitionsToTxnRequest>(&mut all, add_partitions_to_txn);
    sample::<EndTxnRequest>(&mut all, end_txn);
    sample::<WriteTxnMarkersRequest>(&mut all, write_txn_markers);
    sample::<IncrementalAlterConfigsRequest>(&mut all, incremental_alter_configs);
    all
}

type Samples = Vec<(&'static Shape, i16, Bytes, fn(Bytes, i16) -> Result<(), String>)>;

fn sample<C: Call>(all: &mut Samples, make: fn(i16) -> C::Answer)
where
    C::Answer: Encodable,
{
    for version in C::VERSIONS.min..=C::VERSIONS.max {
        let mut body = BytesMut::new();
        make(version).encode(&mut body, version).unwrap();
        all.push((C::SHAPE, version, body.freeze(), read::<C>));
    }
}

/// As [`crate::wire::decode`] does it, without the header.
fn read<C: Call>(mut body: Bytes, version: i16) -> Result<(), String> {
    C::SHAPE.check(&mut body.clone(), version)?;
    C::Answer::decode(&mut body, version).map(drop).map_err(|error| error.to_string())
}

#[test]
fn schemas_fit_what_the_codec_writes() {
    for (shape, version, body, _) in samples() {
        let mut rest = body.clone();
        assert_eq!(shape.check(&mut rest, version), Ok(()), "version {version} of {body:?}");
        assert!(rest.is_empty(), "{} bytes left in version {version} of {body:?}", rest.len());
    }
}

#[test]
fn cut_off_answers_are_refused() {
    for (shape, version, body, _) in samples() {
        for length in 0..body.len() {
            assert!(shape.check(&mut body.slice(..length), version).is_err(), "{length} bytes of version {version}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_answers_neither_panic_nor_reserve_what_they_do_not_hold(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let samples = samples();
        let (_, version, body, read) = which.get(&samples);
        let mut bytes = body.to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _whatever = read(bytes.into(), *version);
    }
}
