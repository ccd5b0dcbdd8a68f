//! What users of a connection can rely on, over an in-memory stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, CreateTopicsRequest, FetchRequest, MetadataRequest, MetadataResponse,
    ProduceRequest, ProduceResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::error::{ErrorCode, WriteRefused};
use crate::testing::{self, MAX_ANSWER_BYTES, REQUEST_TIMEOUT};

const VERSION: i16 = 12;

fn ask(connection: &Connection) -> impl Future<Output = Result<MetadataResponse, KafkaError>> + Send + use<> {
    connection.submit(&MetadataRequest::default(), VERSION, REQUEST_TIMEOUT, false)
}

fn named(id: &'static str) -> MetadataResponse {
    MetadataResponse::default().with_cluster_id(Some(StrBytes::from_static_str(id)))
}

fn name(answer: Result<MetadataResponse, KafkaError>) -> String {
    answer.unwrap().cluster_id.unwrap().to_string()
}

fn cause(error: &KafkaError) -> (Arc<ConnectionError>, bool) {
    let KafkaErrorKind::Connection { cause, sent } = error.kind() else { panic!("not the connection's: {error:?}") };
    (Arc::clone(cause), *sent)
}

#[tokio::test]
async fn several_requests_are_in_flight_and_answered_in_order() {
    let (connection, mut broker) = testing::connection();
    let (one, two) = (ask(&connection), ask(&connection));
    let first = broker.asked::<MetadataRequest>().await;
    let second = broker.asked::<MetadataRequest>().await;
    broker.answer(&first, &named("one")).await;
    broker.answer(&second, &named("two")).await;
    // Whoever waits first: each gets its own.
    assert_eq!(name(two.await), "two");
    assert_eq!(name(one.await), "one");
    assert!(!connection.is_poisoned());
}

#[tokio::test]
async fn first_error_reaches_every_waiter_and_later_caller() {
    let (connection, mut broker) = testing::connection();
    let (one, two) = (ask(&connection), ask(&connection));
    broker.asked::<MetadataRequest>().await;
    drop(broker);
    let (one, two) = (one.await.unwrap_err(), two.await.unwrap_err());
    let later = ask(&connection).await.unwrap_err();
    assert!(matches!(cause(&one).0.kind, ConnectionErrorKind::Closed | ConnectionErrorKind::Io(_)));
    assert!(Arc::ptr_eq(&cause(&one).0, &cause(&two).0));
    assert!(Arc::ptr_eq(&cause(&one).0, &cause(&later).0));
    assert!(Arc::ptr_eq(&cause(&one).0, &connection.poisoned().await));
    assert!(one.is_ambiguous() && one.retriable());
    assert!(!later.is_ambiguous(), "nothing of the later request was written");
}

#[tokio::test]
async fn broker_that_hangs_up_while_idle_is_noticed() {
    let (connection, broker) = testing::connection();
    drop(broker);
    assert!(matches!(connection.poisoned().await.kind, ConnectionErrorKind::Closed));
    assert!(connection.is_poisoned());
}

#[tokio::test(start_paused = true)]
async fn unanswered_request_poisons_after_its_deadline() {
    let (connection, mut broker) = testing::connection();
    let started = Instant::now();
    let patient = connection.submit(&MetadataRequest::default(), VERSION, REQUEST_TIMEOUT * 10, false);
    let hasty = ask(&connection);
    let error = hasty.await.unwrap_err();
    assert_eq!(started.elapsed().as_secs(), REQUEST_TIMEOUT.as_secs());
    let expected = |kind: &ConnectionErrorKind| matches!(kind, ConnectionErrorKind::Timeout { api: Api::Metadata, after } if *after == REQUEST_TIMEOUT);
    assert!(expected(&cause(&error).0.kind), "{error}");
    assert!(expected(&cause(&patient.await.unwrap_err()).0.kind));
    broker.asked::<MetadataRequest>().await;
}

#[tokio::test(start_paused = true)]
async fn dropped_request_still_has_its_deadline() {
    let (connection, _broker) = testing::connection();
    drop(ask(&connection));
    assert!(matches!(connection.poisoned().await.kind, ConnectionErrorKind::Timeout { .. }));
}

#[tokio::test]
async fn answer_of_a_dropped_request_goes_to_nobody() {
    let (connection, mut broker) = testing::connection();
    drop(ask(&connection));
    let kept = ask(&connection);
    broker.turn::<MetadataRequest>(|_| named("dropped")).await;
    broker.turn::<MetadataRequest>(|_| named("kept")).await;
    assert_eq!(name(kept.await), "kept");
}

#[tokio::test]
async fn oversized_and_negative_lengths_are_refused_unread() {
    for size in [i32::MAX, i32::try_from(MAX_ANSWER_BYTES).unwrap() + 1, -1, 3] {
        let (connection, mut broker) = testing::connection();
        let waiting = ask(&connection);
        broker.stream.write_i32(size).await.unwrap();
        let error = waiting.await.unwrap_err();
        let kind = &cause(&error).0.kind;
        assert!(matches!(kind, ConnectionErrorKind::AnswerSize { size: found, .. } if *found == size), "{kind}");
    }
}

#[tokio::test]
async fn answers_in_pieces_and_in_heaps_are_read() {
    let (connection, mut broker) = testing::connection();
    let answers: Vec<_> = (0..3).map(|_| ask(&connection)).collect();
    let mut heap = BytesMut::new();
    for _ in 0..answers.len() {
        let asked = broker.asked::<MetadataRequest>().await;
        let body = testing::encode_answer::<MetadataRequest>(asked.version, asked.correlation, &named("x"));
        heap.put_i32(i32::try_from(body.len()).unwrap());
        heap.put_slice(&body);
    }
    let (head, tail) = heap.split_at(heap.len() / 2);
    for byte in head {
        broker.stream.write_u8(*byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    broker.stream.write_all(tail).await.unwrap();
    for answer in answers {
        assert_eq!(name(answer.await), "x");
    }
}

#[tokio::test]
async fn answer_to_something_else_poisons() {
    let (connection, mut broker) = testing::connection();
    let waiting = ask(&connection);
    let asked = broker.asked::<MetadataRequest>().await;
    let body = testing::encode_answer::<MetadataRequest>(VERSION, asked.correlation + 1, &named("x"));
    broker.send(&body).await;
    let error = waiting.await.unwrap_err();
    assert!(matches!(cause(&error).0.kind, ConnectionErrorKind::Correlation { .. }), "{error}");

    let (connection, mut broker) = testing::connection();
    broker.send(&body).await;
    let kind = &connection.poisoned().await.kind;
    assert!(matches!(kind, ConnectionErrorKind::Correlation { expected: None, .. }), "{kind}");
}

#[tokio::test]
async fn unreadable_answer_poisons() {
    let (connection, mut broker) = testing::connection();
    let waiting = ask(&connection);
    let asked = broker.asked::<MetadataRequest>().await;
    let mut body = BytesMut::new();
    body.put_i32(asked.correlation);
    body.put_u8(0);
    body.put_i32(0);
    // As many brokers as five bytes can say, in a message that ends here.
    body.put_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    broker.send(&body).await;
    let error = waiting.await.unwrap_err();
    assert!(matches!(cause(&error).0.kind, ConnectionErrorKind::Decode { api: Api::Metadata, .. }), "{error}");
    assert!(connection.is_poisoned());
}

#[tokio::test]
async fn more_requests_than_slots_are_refused_or_wait() {
    let (connection, mut broker) = testing::connection();
    let waiting: Vec<_> = (0..MAX_IN_FLIGHT).map(|_| ask(&connection)).collect();
    let refused = ask(&connection).await.unwrap_err();
    assert!(matches!(refused.kind(), KafkaErrorKind::Busy { .. }) && !refused.is_ambiguous());
    let request = MetadataRequest::default();
    let (patient, ()) = tokio::join!(connection.call(&request, VERSION, REQUEST_TIMEOUT), async {
        for _ in 0..=MAX_IN_FLIGHT {
            broker.turn::<MetadataRequest>(|_| named("x")).await;
        }
    });
    assert_eq!(name(patient), "x");
    for answer in waiting {
        assert_eq!(name(answer.await), "x");
    }
}

#[tokio::test]
async fn refused_write_is_not_written_and_the_connection_lives() {
    let allowed = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&allowed);
    let guard: WriteGuard =
        Arc::new(
            move || if asked.load(Ordering::SeqCst) { Ok(()) } else { Err(WriteRefused { reason: "lease over" }) },
        );
    let (connection, mut broker) = testing::connection_with(64 << 10, Some(guard));
    let write = || connection.submit(&ProduceRequest::default(), 9, REQUEST_TIMEOUT, true);
    let refused = write().await.unwrap_err();
    assert!(matches!(refused.kind(), KafkaErrorKind::WriteRefused(WriteRefused { reason: "lease over" })));
    assert!(!refused.is_ambiguous());
    // Reads are not the guard's business, and the refused request left no trace before it.
    let read = ask(&connection);
    broker.turn::<MetadataRequest>(|_| named("read")).await;
    assert_eq!(name(read.await), "read");
    allowed.store(true, Ordering::SeqCst);
    let written = write();
    broker.turn::<ProduceRequest>(|_| ProduceResponse::default()).await;
    written.await.unwrap();
}

#[tokio::test]
async fn refusal_in_the_middle_of_a_frame_cuts_it() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let guard: WriteGuard = Arc::new(move || match counter.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Ok(()),
        _ => Err(WriteRefused { reason: "woke up late" }),
    });
    let (connection, mut broker) = testing::connection_with(16, Some(guard));
    let topic = "a-long-topic-name-that-does-not-fit-the-pipe";
    let batch = crate::produce::ProduceBatch { topic: topic.into(), topic_id: None, partition: 0, batch: Bytes::new() };
    let written = crate::produce::send_produce(&connection, vec![batch], Duration::ZERO);
    let mut seen = [0; 8];
    broker.stream.read_exact(&mut seen).await.unwrap();
    let error = written.await.unwrap_err();
    assert!(matches!(cause(&error).0.kind, ConnectionErrorKind::WriteRefused(_)), "{error}");
    let mut rest = Vec::new();
    broker.stream.read_to_end(&mut rest).await.unwrap();
    let announced = usize::try_from(i32::from_be_bytes(*seen.first_chunk().unwrap())).unwrap();
    assert!(rest.len() + seen.len() < announced + FRAME_HEAD, "the frame was finished");
    assert!(error.is_ambiguous());
}

const FRAME_HEAD: usize = wire::FRAME_HEAD_BYTES;

#[tokio::test]
async fn versions_are_the_newest_that_both_know() {
    let (connection, _broker) = testing::connection();
    assert_eq!(connection.version::<FetchRequest>(i16::MAX).unwrap(), 17);
    assert_eq!(connection.version::<FetchRequest>(12).unwrap(), 12);
    assert_eq!(connection.version::<MetadataRequest>(i16::MAX).unwrap(), 12);
    let error = connection.version::<CreateTopicsRequest>(i16::MAX).unwrap_err();
    assert!(matches!(error.kind(), KafkaErrorKind::Unsupported { api: Api::CreateTopics, theirs: None, .. }));
    assert!(!error.retriable() && !error.is_ambiguous());
    assert!(error.to_string().contains("scripted:9092 does not offer CreateTopics in versions 2 to 7"), "{error}");
    let error = connection.version_since::<FetchRequest>(18, i16::MAX).unwrap_err();
    assert!(matches!(error.kind(), KafkaErrorKind::Unsupported { theirs: Some(Versions { min: 0, max: 17 }), .. }));
}

fn offered() -> ApiVersionsResponse {
    let fetch = ApiVersion::default().with_api_key(Api::Fetch.key()).with_min_version(4).with_max_version(11);
    ApiVersionsResponse::default().with_api_keys(vec![fetch])
}

#[tokio::test]
async fn version_query_falls_back_for_old_brokers() {
    let (connection, mut broker) = testing::bare_connection(4096, None);
    let query = setup::query_versions(&connection);
    let (asked, ()) = tokio::join!(query, async {
        let asked = broker.asked::<ApiVersionsRequest>().await;
        assert_eq!((asked.version, &*asked.request.client_software_name), (3, "tombolo"));
        // In the layout of v0, as Kafka does it.
        let refusal = ApiVersionsResponse::default().with_error_code(ErrorCode::UNSUPPORTED_VERSION.number());
        broker.send(&testing::encode_answer::<ApiVersionsRequest>(0, asked.correlation, &refusal)).await;
        let asked = broker.turn::<ApiVersionsRequest>(|_| offered()).await;
        assert_eq!(asked.version, 0);
    });
    asked.unwrap();
    assert_eq!(connection.offers(Api::Fetch), Some(Versions { min: 4, max: 11 }));
    assert_eq!(connection.offers(Api::Produce), None);
}

#[tokio::test]
async fn version_query_takes_the_new_layout() {
    let (connection, mut broker) = testing::bare_connection(4096, None);
    let (asked, _) = tokio::join!(setup::query_versions(&connection), broker.turn::<ApiVersionsRequest>(|_| offered()));
    asked.unwrap();
    assert_eq!(connection.offers(Api::Fetch), Some(Versions { min: 4, max: 11 }));
}
