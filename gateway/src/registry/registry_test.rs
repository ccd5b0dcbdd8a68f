//! What the registry promises: its records, its follower and its terms.

use tombolo_kafka::ClientSettings;
use tombolo_proto::id::TopicName;

use super::*;

fn registry() -> Registry {
    let client = ClientSettings::from_properties([("bootstrap.servers", "127.0.0.1:1")]).unwrap();
    let settings = RegistrySettings {
        topic: TopicName::new("_tombolo").unwrap(),
        lease: Duration::from_secs(3),
        settle: Duration::from_secs(1),
        replication_factor: None,
    };
    Registry::new(Cluster::new(client), &settings, Clock::start())
}

fn link() -> LinkName {
    LinkName::new("ship-17").unwrap()
}

fn record(registry: &Registry, term: u64, here: bool) -> TermRecord {
    let instance = if here { registry.shared.instance } else { registry.shared.instance ^ 1 };
    TermRecord::new(&link(), Term(term), instance, 5_000)
}

#[test]
fn a_term_is_believed_only_when_read_back() {
    let registry = registry();
    assert!(registry.shared.believe(&link(), Term(1), None).is_none());
    registry.shared.learn(link(), &record(&registry, 1, false));
    assert!(registry.shared.believe(&link(), Term(1), None).is_none(), "another's record of the same term");
    registry.shared.learn(link(), &record(&registry, 2, true));
    let claim = registry.shared.believe(&link(), Term(2), None).unwrap();
    assert_eq!(claim.lease.term(), Term(2));
}

#[test]
fn a_successor_waits_for_the_longer_lease_and_the_settle_time() {
    let registry = registry();
    registry.shared.learn(link(), &record(&registry, 1, false));
    let before = registry.shared.view().links.get(&link()).cloned();
    registry.shared.learn(link(), &record(&registry, 2, true));
    let now = registry.shared.clock.now();
    let claim = registry.shared.believe(&link(), Term(2), before.as_ref()).unwrap();
    assert!(claim.write_after >= now + Duration::from_secs(6), "{:?}", claim.write_after);
    // The same process takes over from itself: nothing to add, but the first holder's time still runs.
    let before = registry.shared.view().links.get(&link()).cloned();
    registry.shared.learn(link(), &record(&registry, 3, true));
    let next = registry.shared.believe(&link(), Term(3), before.as_ref()).unwrap();
    assert_eq!(next.write_after, claim.write_after);
}

#[test]
fn the_first_holder_waits_for_nobody() {
    let registry = registry();
    registry.shared.learn(link(), &record(&registry, 1, true));
    let claim = registry.shared.believe(&link(), Term(1), None).unwrap();
    assert!(claim.write_after <= registry.shared.clock.now());
    // No look at the registry yet: nothing may be written.
    assert!(claim.lease.permits().is_err());
    registry.looked(registry.shared.clock.now());
    assert!(claim.lease.permits().is_ok());
}

#[test]
fn a_look_tells_every_session_of_a_newer_term() {
    let registry = registry();
    registry.shared.learn(link(), &record(&registry, 1, true));
    let claim = registry.shared.believe(&link(), Term(1), None).unwrap();
    registry.looked(registry.shared.clock.now());
    registry.shared.learn(link(), &record(&registry, 2, false));
    registry.looked(registry.shared.clock.now());
    let error = claim.lease.permits().unwrap_err();
    assert_eq!(error, tombolo_proto::lease::LeaseError::Superseded { newer: Term(2) });
    drop(claim);
    registry.looked(registry.shared.clock.now());
    assert!(registry.shared.view().leases.is_empty());
}

#[test]
fn the_record_that_is_read_back_tells_whose_process_is_served() {
    let registry = registry();
    let claimant = Claimant { incarnation: 7, address: [10, 0, 0, 1].into(), earlier_connected: false };
    let (incarnations, former) = Incarnations::default().claim(claimant, 1_000).unwrap();
    assert_eq!(former, None);
    let mut own = record(&registry, 1, true);
    incarnations.write(&mut own);
    registry.shared.learn(link(), &own);
    let claim = registry.shared.believe(&link(), Term(1), None).unwrap();
    assert_eq!(claim.agent_since, UNIX_EPOCH.checked_add(Duration::from_secs(1_000)));
    let held = registry.shared.view().links.get(&link()).cloned().unwrap();
    let other = Claimant { incarnation: 8, ..claimant };
    let (incarnations, _) = held.incarnations.claim(other, 2_000).unwrap();
    let mut theirs = record(&registry, 2, false);
    incarnations.write(&mut theirs);
    registry.shared.learn(link(), &theirs);
    let held = registry.shared.view().links.get(&link()).cloned().unwrap();
    assert!(held.incarnations.claim(claimant, 2_100).is_err(), "the older one is refused by every gateway");
}
