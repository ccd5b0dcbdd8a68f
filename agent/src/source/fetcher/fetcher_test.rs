//! What a broker's refusal of one partition leads to, and how changes reach a fetcher.

use super::*;

fn key() -> Key {
    (TopicName::new("orders").unwrap(), 2)
}

fn assignment(fetch: u64, offset: Offset) -> Assignment {
    let cursor = Arc::new(Cursor::new(offset, None, 0));
    Assignment { fetch, cursor, topic_id: None, leader_epoch: 5, on_trial: false }
}

fn answer(error: Option<ErrorCode>, diverging_epoch: Option<(i32, i64)>) -> FetchedPartition {
    FetchedPartition {
        topic: "orders".into(),
        partition: 2,
        error,
        high_watermark: 100,
        last_stable_offset: 100,
        aborted: Vec::new(),
        log_start_offset: 0,
        diverging_epoch,
        records: bytes::Bytes::new(),
    }
}

fn why(error: Option<ErrorCode>, diverging_epoch: Option<(i32, i64)>) -> (Option<Why>, Vec<EdgeInput>) {
    let mut inputs = Vec::new();
    let why = refused(&answer(error, diverging_epoch), &assignment(9, 40), &key(), &mut inputs);
    (why, inputs)
}

#[test]
fn no_error_is_no_refusal() {
    assert!(matches!(why(None, None), (None, inputs) if inputs.is_empty()));
}

#[test]
fn each_error_has_its_way() {
    let out_of_range = why(Some(ErrorCode::OFFSET_OUT_OF_RANGE), None).0;
    assert!(matches!(out_of_range, Some(Why::OutOfRange { offset: 40 })));
    assert!(matches!(why(Some(ErrorCode::TOPIC_AUTHORIZATION_FAILED), None).0, Some(Why::Denied(_))));
    for code in [
        ErrorCode::NOT_LEADER_OR_FOLLOWER,
        ErrorCode::FENCED_LEADER_EPOCH,
        ErrorCode::UNKNOWN_TOPIC_ID,
        ErrorCode::KAFKA_STORAGE_ERROR,
        ErrorCode::UNKNOWN_SERVER_ERROR,
    ] {
        let (why, inputs) = why(Some(code), None);
        assert!(matches!(why, Some(Why::Trouble(told)) if told == code), "{code}");
        assert!(inputs.is_empty(), "a broker in trouble stops no mirror");
    }
}

#[test]
fn a_log_that_was_cut_back_stops_the_mirror() {
    let (why, inputs) = why(None, Some((3, 25)));
    assert!(matches!(why, Some(Why::Failed)));
    let [EdgeInput::FetchFailed { fetch: 9, failure, .. }] = inputs.as_slice() else { panic!("{inputs:?}") };
    assert_eq!(
        (failure.code, failure.partition, failure.offset, failure.end_offset),
        (FailureCode::UnexpectedTruncation, Some(2), Some(25), Some(40))
    );
}

#[test]
fn the_last_change_of_a_partition_counts() {
    let inbox = Inbox::default();
    inbox.put(key(), Change::Read(assignment(1, 0)));
    inbox.put(key(), Change::Leave);
    inbox.put(key(), Change::Read(assignment(2, 10)));
    let changes = inbox.take();
    assert_eq!(changes.len(), 1);
    assert!(matches!(&changes[&key()], Change::Read(assignment) if assignment.fetch == 2));
    assert!(inbox.take().is_empty());
}

#[tokio::test]
async fn while_a_partition_rests_the_broker_is_not_asked_to_wait() {
    let settings = tombolo_kafka::ClientSettings::from_properties([("bootstrap.servers", "127.0.0.1:1")]).unwrap();
    let (inbox, share) = (Arc::new(Inbox::default()), Arc::new(AtomicI32::new(1)));
    let ((_, room), (notes, _), (events, _)) = (watch::channel(true), mpsc::channel(1), mpsc::channel(1));
    let lines = Lines { inbox: Arc::clone(&inbox), share, room, notes, events };
    let options = FetchOptions {
        max_wait: Duration::from_millis(500),
        min_bytes: 1,
        max_bytes: 1,
        partition_max_bytes: 1,
        read_committed: true,
        sessions: true,
    };
    let mut fetcher = Fetcher::new(1, Cluster::new(settings), options, 1, lines);
    let mut patient_after = |change: Change| {
        inbox.put(key(), change);
        fetcher.take_changes(None);
        (fetcher.is_patient(), fetcher.partitions.len())
    };
    assert_eq!(patient_after(Change::Read(assignment(1, 0))), (true, 1));
    assert_eq!(patient_after(Change::Rest), (false, 0));
    assert_eq!(patient_after(Change::Read(assignment(2, 5))), (true, 1), "it is back");
    assert_eq!(patient_after(Change::Leave), (true, 0), "it does not come back");
    assert_eq!(patient_after(Change::Rest), (false, 0));
    tokio::time::sleep(SHORT_REST).await;
    assert!(fetcher.is_patient(), "a long rest is no reason to hurry");
}

#[test]
fn a_cursor_remembers_what_was_fetched_before() {
    let cursor = Cursor::new(50, None, 80);
    assert_eq!(cursor.fetched_before(), 80);
    cursor.place().offset = 90;
    assert_eq!(cursor.fetched_before(), 90);
}

#[test]
fn a_transaction_that_hangs_is_seen_where_reading_has_come_to_it() {
    let cursor = Cursor::new(40, None, 0);
    cursor.note_end(45, 60);
    assert_eq!(cursor.stalled(Duration::ZERO), None, "there is something to be read");
    cursor.place().offset = 45;
    assert_eq!(cursor.stalled(Duration::ZERO), Some(45));
    assert_eq!(cursor.stalled(Duration::from_hours(1)), None);
    let since = || cursor.place().unsettled.map(|(_, since)| since);
    let before = since();
    cursor.note_end(45, 70);
    assert_eq!(since(), before, "it has not moved");
    cursor.note_end(50, 70);
    assert_ne!(since(), before);
    for (last_stable, high_watermark) in [(70, 70), (-1, 70)] {
        cursor.note_end(last_stable, high_watermark);
        assert_eq!(cursor.stalled(Duration::ZERO), None);
    }
}
