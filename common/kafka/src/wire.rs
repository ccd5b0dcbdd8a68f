//! The codec's edge: which requests this client speaks in which versions, frames out, answers in.
//!
//! Nothing outside this crate sees a type of `kafka-protocol`. An answer is measured against its schema before it is
//! decoded, because the codec reserves memory for an array before it has seen one element.

mod shape;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ApiVersionsRequest, ApiVersionsResponse,
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DescribeConfigsRequest, DescribeConfigsResponse, DescribeProducersRequest,
    DescribeProducersResponse, EndTxnRequest, EndTxnResponse, FetchRequest, FetchResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, InitProducerIdRequest,
    InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest,
    ProduceResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse, WriteTxnMarkersRequest, WriteTxnMarkersResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::TopicId;
use crate::error::{Api, ErrorCode, Versions};
use shape::Shape;

/// Length field of a frame.
pub(crate) const FRAME_HEAD_BYTES: usize = 4;

/// One request kind: its number, the versions this client can use, its answer.
pub(crate) trait Call: Encodable + HeaderVersion {
    /// Name for errors.
    const API: Api;
    /// Versions whose every field this client fills and reads rightly.
    const VERSIONS: Versions;
    /// The answer's schema.
    const SHAPE: &'static Shape;
    /// The answer.
    type Answer: Decodable + HeaderVersion;
}

macro_rules! calls {
    ($($request:ident -> $answer:ident, $api:ident, $min:literal to $max:literal, $shape:ident;)*) => {
        $(impl Call for $request {
            const API: Api = Api::$api;
            const VERSIONS: Versions = Versions { min: $min, max: $max };
            const SHAPE: &'static Shape = &shape::$shape;
            type Answer = $answer;
        })*
    };
}

// Fetch 18 and ApiVersions 4 bring nothing this client uses. ListOffsets 11 and WriteTxnMarkers 2 are unknown to the
// codec. AddPartitionsToTxn 4 is for brokers; EndTxn 5 would change the producer epoch with every transaction (KIP-890).
calls! {
    ProduceRequest -> ProduceResponse, Produce, 3 to 13, PRODUCE;
    FetchRequest -> FetchResponse, Fetch, 4 to 17, FETCH;
    ListOffsetsRequest -> ListOffsetsResponse, ListOffsets, 1 to 10, LIST_OFFSETS;
    MetadataRequest -> MetadataResponse, Metadata, 4 to 13, METADATA;
    SaslHandshakeRequest -> SaslHandshakeResponse, SaslHandshake, 1 to 1, SASL_HANDSHAKE;
    ApiVersionsRequest -> ApiVersionsResponse, ApiVersions, 0 to 3, API_VERSIONS;
    CreateTopicsRequest -> CreateTopicsResponse, CreateTopics, 2 to 7, CREATE_TOPICS;
    DescribeConfigsRequest -> DescribeConfigsResponse, DescribeConfigs, 1 to 4, DESCRIBE_CONFIGS;
    SaslAuthenticateRequest -> SaslAuthenticateResponse, SaslAuthenticate, 0 to 2, SASL_AUTHENTICATE;
    CreatePartitionsRequest -> CreatePartitionsResponse, CreatePartitions, 0 to 3, CREATE_PARTITIONS;
    DescribeProducersRequest -> DescribeProducersResponse, DescribeProducers, 0 to 0, DESCRIBE_PRODUCERS;
    FindCoordinatorRequest -> FindCoordinatorResponse, FindCoordinator, 1 to 3, FIND_COORDINATOR;
    DeleteRecordsRequest -> DeleteRecordsResponse, DeleteRecords, 0 to 2, DELETE_RECORDS;
    InitProducerIdRequest -> InitProducerIdResponse, InitProducerId, 0 to 5, INIT_PRODUCER_ID;
    AddPartitionsToTxnRequest -> AddPartitionsToTxnResponse, AddPartitionsToTxn, 0 to 3, ADD_PARTITIONS_TO_TXN;
    EndTxnRequest -> EndTxnResponse, EndTxn, 0 to 3, END_TXN;
    WriteTxnMarkersRequest -> WriteTxnMarkersResponse, WriteTxnMarkers, 1 to 1, WRITE_TXN_MARKERS;
    IncrementalAlterConfigsRequest -> IncrementalAlterConfigsResponse, IncrementalAlterConfigs, 0 to 1,
        INCREMENTAL_ALTER_CONFIGS;
}

impl Api {
    /// `api_key` on the wire (`org.apache.kafka.common.protocol.ApiKeys`).
    pub(crate) const fn key(self) -> i16 {
        match self {
            Self::Produce => 0,
            Self::Fetch => 1,
            Self::ListOffsets => 2,
            Self::Metadata => 3,
            Self::SaslHandshake => 17,
            Self::ApiVersions => 18,
            Self::CreateTopics => 19,
            Self::DescribeConfigs => 32,
            Self::SaslAuthenticate => 36,
            Self::CreatePartitions => 37,
            Self::DescribeProducers => 61,
            Self::FindCoordinator => 10,
            Self::DeleteRecords => 21,
            Self::InitProducerId => 22,
            Self::AddPartitionsToTxn => 24,
            Self::EndTxn => 26,
            Self::WriteTxnMarkers => 27,
            Self::IncrementalAlterConfigs => 44,
        }
    }
}

/// An answer's first bytes: the number of its request.
pub(crate) const CORRELATION_BYTES: usize = 4;

/// A whole frame: length, header, body. The body's record batches are copied here, once.
pub(crate) fn encode<C: Call>(request: &C, version: i16, correlation: i32, client_id: &str) -> Result<Bytes, String> {
    let header = RequestHeader::default()
        .with_request_api_key(C::API.key())
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(text(client_id)));
    let header_version = C::header_version(version);
    let size = header.compute_size(header_version).map_err(|error| error.to_string())?
        + request.compute_size(version).map_err(|error| error.to_string())?;
    let length = i32::try_from(size).map_err(|_| format!("{size} bytes are more than a frame holds"))?;
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + size);
    frame.put_i32(length);
    header.encode(&mut frame, header_version).map_err(|error| error.to_string())?;
    request.encode(&mut frame, version).map_err(|error| error.to_string())?;
    Ok(frame.freeze())
}

/// Reads an answer (without its length field). Byte strings in it are slices of `answer`. Bytes after the message are let
/// pass, as librdkafka does: its mock brokers write some.
pub(crate) fn decode<C: Call>(mut answer: Bytes, version: i16) -> Result<C::Answer, String> {
    let header_version = C::Answer::header_version(version);
    shape::HEADER.check(&mut answer.clone(), header_version)?;
    ResponseHeader::decode(&mut answer, header_version).map_err(|error| error.to_string())?;
    C::SHAPE.check(&mut answer.clone(), version)?;
    C::Answer::decode(&mut answer, version).map_err(|error| error.to_string())
}

/// Whether the body of an undecoded answer, with an unflexible header, begins with this error code.
pub(crate) fn starts_with_code(answer: &Bytes, code: ErrorCode) -> bool {
    answer.get(CORRELATION_BYTES..CORRELATION_BYTES + 2).is_some_and(|bytes| bytes == code.number().to_be_bytes())
}

/// A protocol string of a borrowed one.
pub(crate) fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

/// Milliseconds of the protocol's 32-bit fields.
pub(crate) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// How an answer names a topic: by name, or in newer versions by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(TopicId),
}

impl<'a> Key<'a> {
    /// An answer's topic: the id is all zeros where the version has names.
    pub(crate) fn new(name: &'a str, id: TopicId) -> Self {
        known_id(id).map_or(Self::Name(name), Self::Id)
    }
}

/// A topic id of an answer: all zeros where the version or the broker has none.
pub(crate) fn known_id(id: TopicId) -> Option<TopicId> {
    Some(id).filter(|id| *id != TopicId::default())
}

/// The codec's type of a topic id; its crate is not a dependency of this one, so its name cannot be written.
pub(crate) fn topic_id<T: TryFrom<Vec<u8>>>(id: TopicId) -> T {
    T::try_from(id.to_vec()).ok().expect("a topic id has the sixteen bytes it takes")
}
