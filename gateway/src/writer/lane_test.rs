//! What goes into a request, and which lane a batch goes to.

use bytes::Bytes;
use tombolo_proto::id::{Partition, TopicName};

use super::*;

fn job(partition: Partition, ticket: u64, bytes: usize) -> Job {
    Job {
        mirror: MirrorId(0),
        partition,
        ticket,
        topic: TopicName::new("t").unwrap(),
        topic_id: Some([1; 16]),
        offset: 0,
        batch: Bytes::from(vec![0; bytes]),
        again: false,
    }
}

fn put(lane: &Lane, jobs: impl IntoIterator<Item = Job>) {
    jobs.into_iter().for_each(|job| lane.put(job, Instant::now()));
}

fn gathered(lane: &Lane, bytes: usize) -> Vec<(Partition, u64)> {
    lane.gather(bytes).iter().map(|job| (job.partition, job.ticket)).collect()
}

#[test]
fn a_request_takes_one_batch_of_a_partition_and_keeps_order() {
    let lane = Lane::default();
    put(&lane, [job(0, 0, 10), job(0, 1, 10), job(1, 0, 10), job(0, 2, 10)]);
    assert_eq!(gathered(&lane, 100), [(0, 0), (1, 0)]);
    assert_eq!(gathered(&lane, 100), [(0, 1)]);
    assert_eq!(gathered(&lane, 100), [(0, 2)]);
    assert_eq!(gathered(&lane, 100), []);
}

#[test]
fn a_batch_that_does_not_fit_is_not_overtaken_by_its_successor() {
    let lane = Lane::default();
    put(&lane, [job(0, 0, 60), job(1, 0, 60), job(1, 1, 10), job(2, 0, 10)]);
    assert_eq!(gathered(&lane, 100), [(0, 0), (2, 0)]);
    assert_eq!(gathered(&lane, 100), [(1, 0)]);
    assert_eq!(gathered(&lane, 100), [(1, 1)]);
}

#[test]
fn a_request_names_topics_in_one_way_and_each_once() {
    let lane = Lane::default();
    let of = |id: Option<u8>, job| Job { topic_id: id.map(|id| [id; 16]), ..job };
    put(
        &lane,
        [
            of(Some(1), job(0, 0, 10)),
            of(None, Job { mirror: MirrorId(1), ..job(5, 0, 10) }),
            of(Some(2), job(1, 0, 10)),
            of(Some(1), job(2, 0, 10)),
        ],
    );
    assert_eq!(gathered(&lane, 100), [(0, 0), (2, 0)]);
    assert_eq!(gathered(&lane, 100), [(5, 0)]);
    assert_eq!(gathered(&lane, 100), [(1, 0)]);
}

#[test]
fn a_batch_larger_than_a_request_goes_alone() {
    let lane = Lane::default();
    put(&lane, [job(0, 0, 500), job(1, 0, 10)]);
    assert_eq!(gathered(&lane, 100), [(0, 0)]);
    assert_eq!(gathered(&lane, 100), [(1, 0)]);
}

const ROOM: usize = 4 * BATCH_WEIGHT;

fn lanes(count: usize) -> Vec<Option<Arc<Lane>>> {
    (0..count).map(|_| Some(Arc::default())).collect()
}

/// Queues a job where it belongs.
fn queue(lanes: &[Option<Arc<Lane>>], job: Job, now: Instant) -> usize {
    let slot = chosen(lanes, job.partition, now);
    lanes[slot].as_ref().unwrap().put(job, now);
    slot
}

fn chosen(lanes: &[Option<Arc<Lane>>], partition: Partition, now: Instant) -> usize {
    choose(lanes, (MirrorId(0), partition), false, ROOM, now)
}

#[test]
fn a_lane_is_filled_before_the_next_is_used() {
    let (lanes, now) = (lanes(3), Instant::now());
    let slots: Vec<_> = (0..10).map(|partition| queue(&lanes, job(partition, 0, 0), now)).collect();
    assert_eq!(slots[..9], [0, 0, 0, 0, 1, 1, 1, 1, 2]);
    assert_eq!(chosen(&[None, None], 0, now), 0);
}

#[test]
fn full_lanes_share_what_comes() {
    let (lanes, now) = (lanes(2), Instant::now());
    let slots: Vec<_> = (0..12).map(|partition| queue(&lanes, job(partition, 0, 0), now)).collect();
    assert_eq!(slots[8..], [0, 1, 0, 1]);
}

#[test]
fn a_partition_stays_with_its_lane_until_it_has_nothing_there() {
    let (lanes, now) = (lanes(2), Instant::now());
    for partition in 0..4 {
        queue(&lanes, job(partition, 0, 0), now);
    }
    assert_eq!(queue(&lanes, job(4, 0, 0), now), 1);
    let first = lanes[0].as_ref().unwrap();
    let sent = first.gather(10);
    assert_eq!(sent.len(), 4);
    first.sent(now);
    first.answered(&sent);
    assert_eq!(queue(&lanes, job(4, 1, 0), now), 1, "its first batch is there");
    assert_eq!(queue(&lanes, job(0, 1, 0), now), 0);
    let second = lanes[1].as_ref().unwrap();
    let sent = second.gather(10);
    second.let_go(&sent);
    assert_eq!(chosen(&lanes, 4, now), 1, "one of its two is there yet");
    let sent = second.gather(10);
    second.let_go(&sent);
    assert_eq!(chosen(&lanes, 4, now), 0);
}

#[test]
fn a_lane_that_waits_is_passed_over() {
    let (lanes, now) = (lanes(3), Instant::now());
    queue(&lanes, job(0, 0, 0), now);
    let first = lanes[0].as_ref().unwrap();
    assert_eq!(chosen(&lanes, 1, now + PATIENCE), 0);
    let later = now + PATIENCE + Duration::from_millis(1);
    assert_eq!(chosen(&lanes, 1, later), 1, "it has no connection");
    let sent = first.gather(10);
    first.sent(later);
    assert_eq!(chosen(&lanes, 1, later), 0);
    let later = later + PATIENCE + Duration::from_millis(1);
    assert_eq!(chosen(&lanes, 1, later), 1, "it has no answer");
    first.answered(&sent);
    assert_eq!(chosen(&lanes, 1, later), 0);
}

#[test]
fn where_all_lanes_wait_the_one_with_the_least_to_do_is_used() {
    let (lanes, now) = (lanes(2), Instant::now());
    let later = now + PATIENCE + Duration::from_millis(1);
    for (slot, partitions) in [(0, 0..3), (1, 3..5)] {
        let lane = lanes[slot].as_ref().unwrap();
        partitions.for_each(|partition| lane.put(job(partition, 0, 0), now));
        lane.gather(10);
        lane.sent(now);
    }
    assert_eq!(chosen(&lanes, 9, later), 1);
}

#[test]
fn a_partition_that_hangs_goes_to_the_last_lane() {
    let (lanes, now) = (lanes(3), Instant::now());
    let chosen = |partition, hangs| choose(&lanes, (MirrorId(0), partition), hangs, ROOM, now);
    assert_eq!((chosen(1, true), chosen(1, false)), (2, 0));
    lanes[0].as_ref().unwrap().put(job(1, 0, 0), now);
    assert_eq!(chosen(1, true), 0, "behind what is there");
}
