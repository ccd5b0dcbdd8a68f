//! Fetch sessions against a scripted broker.

use kafka_protocol::messages::FetchResponse;
use kafka_protocol::messages::fetch_response::EpochEndOffset;

use super::*;
use crate::testing::{self, Asked, Script};

const MAX_WAIT: Duration = Duration::from_millis(100);
const ID: TopicId = [7; 16];

fn options(sessions: bool) -> FetchOptions {
    FetchOptions {
        max_wait: MAX_WAIT,
        min_bytes: 1,
        max_bytes: 1 << 20,
        partition_max_bytes: 1 << 16,
        read_committed: true,
        sessions,
    }
}

fn position(offset: i64) -> FetchPosition {
    FetchPosition { offset, current_leader_epoch: 3, last_fetched_epoch: Some(2) }
}

/// A session over partitions 0 to `partitions` of topic `t`, all at offset 0.
fn session(partitions: i32, sessions: bool) -> (FetchSession, Script) {
    let (connection, broker) = testing::connection();
    let mut session = FetchSession::new(connection, options(sessions));
    for partition in 0..partitions {
        session.add(&Arc::from("t"), Some(ID), partition, position(0));
    }
    (session, broker)
}

type Request = Asked<FetchRequest>;

/// `(session id, epoch, partitions with offsets, forgotten partitions)`
fn said(asked: &Request) -> (i32, i32, Vec<(i32, i64)>, Vec<i32>) {
    let request = &asked.request;
    let partitions = request.topics.iter().flat_map(|topic| &topic.partitions);
    let forgotten = request.forgotten_topics_data.iter().flat_map(|topic| &topic.partitions);
    (
        request.session_id,
        request.session_epoch,
        partitions.map(|partition| (partition.partition, partition.fetch_offset)).collect(),
        forgotten.copied().collect(),
    )
}

fn granting(session: i32, partitions: &[i32]) -> FetchResponse {
    let partitions = partitions.iter().map(|partition| {
        PartitionData::default()
            .with_partition_index(*partition)
            .with_high_watermark(9)
            .with_records(Some(Bytes::from_static(b"batches")))
    });
    let topic = FetchableTopicResponse::default().with_topic_id(topic_id(ID)).with_partitions(partitions.collect());
    FetchResponse::default().with_session_id(session).with_responses(vec![topic])
}

fn refusing(code: ErrorCode) -> FetchResponse {
    FetchResponse::default().with_error_code(code.number())
}

async fn turn(session: &mut FetchSession, broker: &mut Script, answer: FetchResponse) -> (Request, Vec<i32>) {
    let (fetched, asked) = tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| answer));
    (asked, fetched.unwrap().iter().map(|fetched| fetched.partition).collect())
}

#[tokio::test]
async fn granted_session_names_only_what_changed() {
    let (mut session, mut broker) = session(3, true);
    let (asked, fetched) = turn(&mut session, &mut broker, granting(42, &[0, 1, 2])).await;
    assert_eq!(said(&asked), (0, 0, vec![(0, 0), (1, 0), (2, 0)], vec![]));
    assert_eq!((asked.version, fetched), (17, vec![0, 1, 2]));
    assert!(session.advance("t", 1, position(5)));
    session.remove("t", 2);
    let (asked, fetched) = turn(&mut session, &mut broker, granting(42, &[1])).await;
    assert_eq!(said(&asked), (42, 1, vec![(1, 5)], vec![2]));
    assert_eq!(fetched, vec![1]);
    let (asked, _) = turn(&mut session, &mut broker, granting(42, &[])).await;
    assert_eq!(said(&asked), (42, 2, vec![], vec![]), "nothing changed, nothing is named");
    session.add(&Arc::from("t"), Some(ID), 2, position(8));
    let (asked, _) = turn(&mut session, &mut broker, granting(42, &[2])).await;
    assert_eq!(said(&asked), (42, 3, vec![(2, 8)], vec![]));
    assert!(!session.advance("t", 9, position(1)), "not in");
}

#[tokio::test]
async fn ungranted_session_names_everything_and_takes_turns() {
    for sessions in [true, false] {
        let (mut session, mut broker) = session(3, sessions);
        let epoch = if sessions { FIRST_EPOCH } else { NO_SESSION_EPOCH };
        for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]] {
            let (asked, _) = turn(&mut session, &mut broker, granting(0, &[0, 1, 2])).await;
            assert_eq!(said(&asked), (0, epoch, order.map(|partition| (partition, 0)).to_vec(), vec![]));
        }
    }
}

#[tokio::test]
async fn lost_session_is_made_anew_within_the_same_call() {
    let lost = [
        (ErrorCode::FETCH_SESSION_ID_NOT_FOUND, 0),
        (ErrorCode::FETCH_SESSION_TOPIC_ID_ERROR, 0),
        // This one still stands at the broker, and is replaced.
        (ErrorCode::INVALID_FETCH_SESSION_EPOCH, 42),
    ];
    for (code, replaced) in lost {
        let (mut session, mut broker) = session(2, true);
        turn(&mut session, &mut broker, granting(42, &[])).await;
        let (fetched, asked) = tokio::join!(session.fetch(), async {
            broker.turn::<FetchRequest>(|_| refusing(code)).await;
            broker.turn::<FetchRequest>(|_| granting(43, &[0])).await
        });
        assert_eq!(fetched.unwrap().len(), 1);
        let (id, epoch, partitions, _) = said(&asked);
        assert_eq!((id, epoch, partitions.len()), (replaced, FIRST_EPOCH, 2), "{code}");
        let (asked, _) = turn(&mut session, &mut broker, granting(43, &[])).await;
        assert_eq!(said(&asked), (43, 1, vec![], vec![]));
    }
}

#[tokio::test]
async fn other_errors_of_the_whole_answer_are_handed_on() {
    let (mut session, mut broker) = session(1, true);
    let answer = refusing(ErrorCode::CLUSTER_AUTHORIZATION_FAILED);
    let (fetched, _) = tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| answer));
    assert_eq!(fetched.unwrap_err().error_code(), Some(ErrorCode::CLUSTER_AUTHORIZATION_FAILED));
}

#[tokio::test]
async fn dropped_fetch_starts_over() {
    let (mut session, mut broker) = session(1, true);
    turn(&mut session, &mut broker, granting(42, &[0])).await;
    tokio::select! {
        biased;
        fetched = session.fetch() => panic!("nobody answered: {fetched:?}"),
        asked = broker.asked::<FetchRequest>() => {
            let late = testing::encode_answer::<FetchRequest>(asked.version, asked.correlation, &granting(42, &[0]));
            broker.send(&late).await;
        }
    }
    let (asked, fetched) = turn(&mut session, &mut broker, granting(44, &[0])).await;
    assert_eq!(said(&asked), (42, FIRST_EPOCH, vec![(0, 0)], vec![]));
    assert_eq!(fetched, vec![0]);
}

#[tokio::test]
async fn changes_around_a_dropped_fetch_are_known_to_the_next_sessions() {
    let (mut session, mut broker) = session(3, true);
    turn(&mut session, &mut broker, granting(42, &[0, 1, 2])).await;
    session.remove("t", 0);
    tokio::select! {
        biased;
        fetched = session.fetch() => panic!("nobody answered: {fetched:?}"),
        asked = broker.asked::<FetchRequest>() => {
            assert_eq!(said(&asked), (42, 1, vec![], vec![0]));
            let late = testing::encode_answer::<FetchRequest>(asked.version, asked.correlation, &granting(42, &[]));
            broker.send(&late).await;
        }
    }
    session.remove("t", 1);
    let (asked, _) = turn(&mut session, &mut broker, granting(43, &[2])).await;
    assert_eq!(said(&asked), (42, FIRST_EPOCH, vec![(2, 0)], vec![]));
    session.add(&Arc::from("t"), Some(ID), 0, position(7));
    let (asked, _) = turn(&mut session, &mut broker, granting(43, &[])).await;
    assert_eq!(said(&asked), (43, 1, vec![(0, 7)], vec![]), "the old session's partitions are not this one's");
}

#[tokio::test]
async fn what_comes_and_goes_between_two_fetches_is_told_as_it_ends() {
    let (mut session, mut broker) = session(2, true);
    turn(&mut session, &mut broker, granting(42, &[0, 1])).await;
    session.remove("t", 0);
    session.add(&Arc::from("t"), Some(ID), 0, position(0));
    session.remove("t", 1);
    session.add(&Arc::from("t"), Some(ID), 1, position(4));
    session.add(&Arc::from("t"), Some(ID), 2, position(0));
    session.remove("t", 2);
    let (asked, fetched) = turn(&mut session, &mut broker, granting(42, &[0])).await;
    assert_eq!(said(&asked), (42, 1, vec![(1, 4)], vec![]));
    assert_eq!(fetched, [0], "it was never gone");
}

#[tokio::test]
async fn a_topic_has_its_newer_id_only() {
    let (mut session, mut broker) = session(2, true);
    turn(&mut session, &mut broker, granting(42, &[0, 1])).await;
    let new = [8; 16];
    for partition in 0..2 {
        session.add(&Arc::from("t"), Some(new), partition, position(0));
    }
    let fetch = async |session: &mut FetchSession, broker: &mut Script, id: TopicId| {
        let partition = PartitionData::default().with_partition_index(1).with_records(Some(Bytes::new()));
        let topic = FetchableTopicResponse::default().with_topic_id(topic_id(id)).with_partitions(vec![partition]);
        let answer = FetchResponse::default().with_session_id(43).with_responses(vec![topic]);
        tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| answer)).0
    };
    let fetched = fetch(&mut session, &mut broker, new).await.unwrap();
    assert_eq!((&*fetched[0].topic, fetched[0].partition), ("t", 1));
    let error = fetch(&mut session, &mut broker, ID).await.unwrap_err();
    assert!(matches!(error.kind(), crate::error::KafkaErrorKind::Answer(AnswerError::Unasked)), "{error}");
}

#[tokio::test]
async fn partition_not_asked_for_is_an_error() {
    for stranger in [5, 0] {
        let (mut session, mut broker) = session(1, true);
        // Partition 0 twice is as wrong as partition 5.
        let answer = granting(0, &[0, stranger]);
        let (fetched, _) = tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| answer));
        let error = fetched.unwrap_err();
        assert!(matches!(error.kind(), crate::error::KafkaErrorKind::Answer(AnswerError::Unasked)), "{error}");
    }
}

#[tokio::test]
async fn answer_of_another_session_is_an_error() {
    let (mut session, mut broker) = session(1, true);
    turn(&mut session, &mut broker, granting(42, &[0])).await;
    let (fetched, _) = tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| granting(43, &[])));
    assert!(fetched.is_err());
}

#[tokio::test]
async fn topic_without_id_is_named_in_an_older_version() {
    let (mut session, mut broker) = session(1, true);
    turn(&mut session, &mut broker, granting(42, &[0])).await;
    session.add(&Arc::from("nameless"), None, 0, position(1));
    let (fetched, asked) = tokio::join!(
        session.fetch(),
        broker.turn::<FetchRequest>(|_| {
            let partition = PartitionData::default().with_partition_index(0).with_records(Some(Bytes::new()));
            let topic = FetchableTopicResponse::default().with_topic(TopicName(text("nameless")));
            FetchResponse::default().with_responses(vec![topic.with_partitions(vec![partition])])
        })
    );
    let mut names: Vec<_> = asked.request.topics.iter().map(|topic| topic.topic.to_string()).collect();
    names.sort();
    assert_eq!((asked.version, names), (12, vec!["nameless".to_owned(), "t".to_owned()]));
    assert_eq!(said(&asked).0, 42, "the session by id is replaced");
    assert_eq!(&*fetched.unwrap().first().unwrap().topic, "nameless");
}

#[tokio::test]
async fn topic_made_anew_starts_the_session_over() {
    let (mut session, mut broker) = session(1, true);
    turn(&mut session, &mut broker, granting(42, &[0])).await;
    session.add(&Arc::from("t"), Some([8; 16]), 0, position(0));
    let answer = FetchResponse::default().with_session_id(43);
    let (asked, _) = turn(&mut session, &mut broker, answer).await;
    assert_eq!(said(&asked), (42, FIRST_EPOCH, vec![(0, 0)], vec![]));
}

#[tokio::test]
async fn fields_of_the_answer_and_the_request_are_carried_over() {
    let (mut session, mut broker) = session(1, true);
    let mut answer = granting(0, &[0]);
    let partition = &mut answer.responses[0].partitions[0];
    partition.error_code = ErrorCode::OFFSET_OUT_OF_RANGE.number();
    partition.last_stable_offset = 8;
    partition.log_start_offset = 2;
    partition.diverging_epoch = EpochEndOffset::default().with_epoch(1).with_end_offset(6);
    let aborted = [(70, 5), (71, 3)].map(|(producer_id, first_offset)| {
        WireAborted::default().with_producer_id(producer_id.into()).with_first_offset(first_offset)
    });
    partition.aborted_transactions = Some(aborted.to_vec());
    let (fetched, asked) = tokio::join!(session.fetch(), broker.turn::<FetchRequest>(|_| answer));
    let request = &asked.request;
    assert_eq!(
        (request.isolation_level, request.max_wait_ms, request.min_bytes, request.max_bytes),
        (1, 100, 1, 1 << 20)
    );
    assert_eq!(&*request.rack_id, "");
    let partition = &request.topics[0].partitions[0];
    assert_eq!((partition.current_leader_epoch, partition.last_fetched_epoch), (3, 2));
    assert_eq!(partition.partition_max_bytes, 1 << 16);
    let fetched = fetched.unwrap().pop().unwrap();
    assert_eq!(fetched.error, Some(ErrorCode::OFFSET_OUT_OF_RANGE));
    assert_eq!((fetched.high_watermark, fetched.last_stable_offset, fetched.log_start_offset), (9, 8, 2));
    assert_eq!(fetched.diverging_epoch, Some((1, 6)));
    let aborted: Vec<_> = fetched.aborted.iter().map(|one| (one.producer_id, one.first_offset)).collect();
    assert_eq!(aborted, [(70, 5), (71, 3)]);
    assert_eq!(&*fetched.records, b"batches");
}

#[tokio::test]
async fn nothing_to_fetch_asks_nothing() {
    let (mut session, _broker) = session(0, true);
    assert!(session.is_empty());
    assert!(session.fetch().await.unwrap().is_empty());
}
