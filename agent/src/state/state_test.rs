//! The state file: what comes back after a restart, and what a damaged file costs.

use std::fs;
use std::os::unix::fs::FileExt;

use tombolo_proto::edge::CheckpointPartition;
use tombolo_proto::wire::{TailBatch, TopicConfig};

use super::*;

fn topic(name: &str) -> TopicName {
    TopicName::new(name).expect("a legal name")
}

fn mirror(name: &str) -> CheckpointMirror {
    let configs = vec![TopicConfig { name: "retention.ms".to_owned(), value: "1000".to_owned() }];
    CheckpointMirror {
        topic: topic(name),
        topic_id: Some([7; 16]),
        paused: false,
        failed: false,
        settled: true,
        partitions: 3,
        configs,
    }
}

fn partition(name: &str, partition: Partition, confirmed: i64) -> CheckpointPartition {
    let tail = |at| TailBatch { base_offset: at, last_offset: at, crc: 0xffff_0000, gap: at % 2 == 0 };
    let shipped = (confirmed.saturating_sub(16).max(0)..confirmed).map(tail).collect();
    CheckpointPartition { topic: topic(name), partition, confirmed, last_epoch: -1, shipped, seen: confirmed % 2 == 1 }
}

fn checkpoint(mirrors: &[&str], partitions: &[CheckpointPartition]) -> Checkpoint {
    Checkpoint {
        filters: vec!["plant.*".into(), "audit".into()],
        mirrors: mirrors.iter().map(|name| mirror(name)).collect(),
        partitions: partitions.to_vec(),
    }
}

fn open(path: &Path) -> State {
    let (state, warning) = State::open(path).expect("a healthy file");
    assert_eq!(warning, None);
    state
}

#[test]
fn keeps_identity_and_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("data").join("state.redb");
    let mut state = open(&path);
    assert_eq!(state.load().expect("healthy"), Checkpoint::default());
    assert_eq!((state.cluster_id(), state.last_seen()), ("", 0));
    let site_id = state.site_id();
    let saved = checkpoint(&["a", "b"], &[partition("a", 0, 100), partition("a", 1, 3), partition("b", 0, i64::MAX)]);
    state.save(&saved, 1_700_000_000).expect("healthy");
    state.set_cluster_id("MkU3OEVBNTcwNTJENDM2Qk").expect("healthy");
    drop(state);
    let mut state = open(&path);
    assert_eq!(state.site_id(), site_id);
    assert_eq!(state.cluster_id(), "MkU3OEVBNTcwNTJENDM2Qk");
    assert_eq!(state.last_seen(), 1_700_000_000);
    assert_eq!(state.load().expect("healthy"), saved);
}

#[test]
fn sites_have_ids_of_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [one, two] = ["one", "two"].map(|name| open(&folder.path().join(name)).site_id());
    assert_ne!(one, two);
    assert_ne!(one, [0; 16]);
}

#[test]
fn adds_partitions_and_replaces_lists() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let mut state = open(&path);
    state.save(&checkpoint(&["a", "b"], &[partition("a", 0, 1), partition("b", 0, 2)]), 10).expect("healthy");
    let more = [partition("a", 0, 5), partition("b", 1, 6), partition("stranger", 0, 7)];
    state.save(&checkpoint(&["a", "b"], &more), 9).expect("healthy");
    assert_eq!(state.last_seen(), 10, "time does not go back");
    let expected = [partition("a", 0, 5), partition("b", 0, 2), partition("b", 1, 6)];
    assert_eq!(state.load().expect("healthy"), checkpoint(&["a", "b"], &expected));

    let mut changed = checkpoint(&["b", "c"], &[partition("c", 3, 1)]);
    changed.filters.clear();
    changed.mirrors[0].paused = true;
    changed.mirrors[1].topic_id = None;
    state.save(&changed, 11).expect("healthy");
    drop(state);
    changed.partitions = vec![partition("b", 0, 2), partition("b", 1, 6), partition("c", 3, 1)];
    assert_eq!(open(&path).load().expect("healthy"), changed);
}

#[test]
fn mirror_that_came_back_has_no_old_partitions() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut state = open(&folder.path().join("state.redb"));
    state.save(&checkpoint(&["a"], &[partition("a", 0, 1)]), 1).expect("healthy");
    state.save(&checkpoint(&[], &[]), 2).expect("healthy");
    state.save(&checkpoint(&["a"], &[]), 3).expect("healthy");
    assert_eq!(state.load().expect("healthy"), checkpoint(&["a"], &[]));
}

#[test]
fn damaged_file_is_set_aside_and_a_new_one_begun() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let noise: Vec<u8> = (0..50_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for round in 0..2 {
        fs::write(&path, &noise).expect("writable");
        let (mut state, warning) = State::open(&path).expect("never a refusal");
        let warning = warning.unwrap_or_else(|| panic!("no warning in round {round}"));
        assert!(warning.contains("state.redb.damaged") && warning.contains("compared with the source"), "{warning}");
        assert_eq!(state.load().expect("new"), Checkpoint::default());
        assert_eq!(fs::read(folder.path().join("state.redb.damaged")).expect("kept"), noise);
        drop(state);
        open(&path);
    }
}

#[test]
fn any_page_of_noise_is_survived() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let partitions: Vec<_> = (0..200).map(|number| partition("a", number, 50)).collect();
    let saved = checkpoint(&["a"], &partitions);
    open(&path).save(&saved, 1).expect("healthy");
    let whole = fs::read(&path).expect("readable");
    let mut set_aside = 0;
    for page in 0..whole.len() / 4096 {
        fs::write(&path, &whole).expect("writable");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("writable");
        file.write_all_at(&[0xa5; 4096], page as u64 * 4096).expect("writable");
        drop(file);
        let (mut state, warning) = State::open(&path).expect("never a refusal");
        set_aside += usize::from(warning.is_some());
        drop(state.load());
        drop(state);
    }
    assert!(set_aside >= 3, "only {set_aside} pages were missed");
}

#[test]
fn newer_format_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let state = open(&path);
    let transaction = state.db.as_ref().expect("open").begin_write().expect("healthy");
    transaction.open_table(META).expect("there").insert(FORMAT_KEY, 9).expect("healthy");
    transaction.commit().expect("healthy");
    drop(state);
    let error = State::open(&path).expect_err("newer").to_string();
    assert!(error.contains("state.redb has format 9") && error.contains("up to 1"), "{error}");
    assert!(path.exists(), "left as it is");
}

#[test]
fn goes_on_after_a_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let mut state = open(&path);
    let site_id = state.site_id();
    state.save(&checkpoint(&["a"], &[partition("a", 0, 1)]), 1).expect("healthy");
    let failed: Result<(), StateError> = state.with(|_, _| Err(StoreError::Io("no room".to_owned())));
    assert!(failed.expect_err("as told").to_string().ends_with("state.redb: no room"));
    state.save(&checkpoint(&["a"], &[partition("a", 0, 2)]), 2).expect("opened anew");
    assert_eq!(state.load().expect("healthy"), checkpoint(&["a"], &[partition("a", 0, 2)]));
    assert_eq!((state.site_id(), state.last_seen()), (site_id, 2));
}

#[test]
fn file_in_use_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let mut state = open(&path);
    let error = State::open(&path).expect_err("in use");
    assert!(matches!(error, StateError::Failed { .. }), "{error}");
    state.save(&checkpoint(&["a"], &[]), 1).expect("still healthy");
}
