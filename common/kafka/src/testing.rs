//! A broker that says what a test tells it to, at the other end of an in-memory stream or a loopback socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use crate::cluster::WriteGuard;
use crate::connection::{Connection, ConnectionOptions};
use crate::error::{Api, Versions};
use crate::wire::{Call, FRAME_HEAD_BYTES};

pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The broker's end of a stream.
pub(crate) struct Script<S = DuplexStream> {
    pub(crate) stream: S,
}

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Asked<C> {
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    pub(crate) request: C,
}

/// A connection over an in-memory stream to a scripted broker, which offers everything this client knows.
pub(crate) fn connection() -> (Connection, Script) {
    connection_with(64 << 10, None)
}

/// The same with so many bytes between the two, and a guard.
pub(crate) fn connection_with(buffer: usize, guard: Option<WriteGuard>) -> (Connection, Script) {
    let (connection, script) = bare_connection(buffer, guard);
    let offered = [
        (Api::Produce, 13),
        (Api::Fetch, 17),
        (Api::ListOffsets, 9),
        (Api::Metadata, 12),
        (Api::SaslHandshake, 1),
        (Api::SaslAuthenticate, 2),
        (Api::DescribeConfigs, 4),
        (Api::DescribeProducers, 0),
    ];
    let versions = offered.map(|(api, max)| (api.key(), Versions { min: 0, max }));
    connection.set_versions(BTreeMap::from(versions));
    (connection, script)
}

/// A connection that has not asked for versions yet.
pub(crate) fn bare_connection(buffer: usize, guard: Option<WriteGuard>) -> (Connection, Script) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let options = ConnectionOptions {
        broker: 1,
        address: "scripted:9092".into(),
        client_id: Arc::from("test"),
        request_timeout: REQUEST_TIMEOUT,
        max_answer_bytes: MAX_ANSWER_BYTES,
        guard,
    };
    (Connection::start(ours, options), Script { stream: theirs })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Script<S> {
    /// The next frame without its length, `None` when the client has hung up.
    pub(crate) async fn frame(&mut self) -> Option<Bytes> {
        let mut head = [0; FRAME_HEAD_BYTES];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::try_from(i32::from_be_bytes(head)).unwrap()];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(body.into())
    }

    /// The next request, which must be a `C`.
    pub(crate) async fn asked<C: Call + Decodable>(&mut self) -> Asked<C> {
        read_request(self.frame().await.expect("the client asks"))
    }

    /// Answers a request.
    pub(crate) async fn answer<C>(&mut self, to: &Asked<C>, answer: &C::Answer)
    where
        C: Call,
        C::Answer: Encodable,
    {
        self.send(&encode_answer::<C>(to.version, to.correlation, answer)).await;
    }

    /// Reads the next request and answers it.
    pub(crate) async fn turn<C>(&mut self, answer: impl FnOnce(&Asked<C>) -> C::Answer) -> Asked<C>
    where
        C: Call + Decodable,
        C::Answer: Encodable,
    {
        let asked = self.asked().await;
        let answer = answer(&asked);
        self.answer(&asked, &answer).await;
        asked
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(body.len()).unwrap());
        frame.put_slice(body);
        self.stream.write_all(&frame).await.expect("the client reads");
    }
}

pub(crate) fn api_key(frame: &Bytes) -> i16 {
    frame.clone().get_i16()
}

pub(crate) fn read_request<C: Call + Decodable>(mut frame: Bytes) -> Asked<C> {
    assert_eq!(api_key(&frame), C::API.key());
    let version = frame.slice(2..).get_i16();
    let header = RequestHeader::decode(&mut frame, C::header_version(version)).unwrap();
    let request = C::decode(&mut frame, version).unwrap();
    assert!(frame.is_empty());
    Asked { version, correlation: header.correlation_id, request }
}

pub(crate) fn encode_answer<C>(version: i16, correlation: i32, answer: &C::Answer) -> Bytes
where
    C: Call,
    C::Answer: Encodable,
{
    let mut body = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(correlation);
    header.encode(&mut body, C::Answer::header_version(version)).unwrap();
    answer.encode(&mut body, version).unwrap();
    body.freeze()
}
