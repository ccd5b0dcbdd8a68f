//! Clusters that ask for TLS and a password, by each mechanism.

use std::time::Instant;

use tombolo_tests::broker::{ClusterSpec, KafkaCluster, Listener, Mechanism, unique_name};
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

use crate::course::{Turn, assert_equal, tell, wait_until_active};

const RECORDS: u64 = 600;

#[tokio::test]
async fn logs_in_over_tls_on_both_sides_with_scram_and_plain() {
    let _turn = Turn::apart().await;
    let spec = ClusterSpec::single().listener(Listener::SaslSsl);
    let (source, cloud) = tokio::join!(KafkaCluster::start(spec.clone()), KafkaCluster::start(spec));
    let sides = [
        (Mechanism::ScramSha512, Mechanism::Plain),
        (Mechanism::Plain, Mechanism::ScramSha256),
        (Mechanism::ScramSha256, Mechanism::ScramSha512),
    ];
    for (at_source, at_cloud) in sides {
        let topic = unique_name("secret");
        source.create_topic(&topic, 3, 1, &[]).await;
        let spec = RigSpec::new(&[&topic])
            .agent("source.sasl.mechanism", at_source.name())
            .gateway("cloud.sasl.mechanism", at_cloud.name());
        let rig = Rig::start(&source, &cloud, spec).await;
        wait_until_active(&rig, &[&topic]).await;
        let start = Instant::now();
        Workload::new().topic(&topic, 3).shape(Shape::Mixed).produce(&source.client_config(), RECORDS).await;
        assert_equal(&source, &cloud, &[&topic], RECORDS).await;
        tell(&format!("{} to {}, compared", at_source.name(), at_cloud.name()), RECORDS, start);
    }
}
