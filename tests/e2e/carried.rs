//! The journal of a site whose link is dark for good is carried to the cloud by hand.

use std::time::Duration;

use serde_json::Value;
use tombolo_tests::broker::{KafkaCluster, shared_pair, unique_name};
use tombolo_tests::image::log_image;
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::Rig;

use crate::course::{Turn, assert_equal, wait_until_active};
use crate::outage::{go_dark, spec, wait_until_journaled};

const PARTITIONS: i32 = 3;

/// What a command of the rig's daemons answered, as JSON.
fn json(output: &std::process::Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

async fn produce(source: &KafkaCluster, topic: &str, records: u64) {
    let workload = Workload::new().topic(topic, PARTITIONS).shape(Shape::Plain(1_000));
    workload.produce(&source.client_config(), records).await;
}

#[tokio::test]
async fn an_export_reaches_the_mirror_and_the_link_goes_on_from_there() {
    let _turn = Turn::shared().await;
    let pair = shared_pair().await;
    let topic = unique_name("carried");
    pair.source.create_topic(&topic, PARTITIONS, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, spec(&[&topic])).await;
    wait_until_active(&rig, &[&topic]).await;
    produce(&pair.source, &topic, 2_000).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], 2_000).await;

    go_dark(&rig).await;
    produce(&pair.source, &topic, 20_000).await;
    wait_until_journaled(&rig.agent, &pair.source, &topic).await;
    let running = rig.agent.command(&["journal", "ls"]).await;
    assert!(!running.status.success(), "the journal of a running agent is not another's to open");
    assert!(rig.agent.terminate(Duration::from_secs(20)).await.success());
    let listed = json(&rig.agent.command(&["journal", "ls", "--output", "json"]).await);
    assert_eq!(listed["partitions"].as_array().unwrap().len(), usize::try_from(PARTITIONS).unwrap(), "{listed}");
    let verified = rig.agent.command(&["journal", "verify"]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let folder = rig.agent.folder().join("export").display().to_string();
    let exported = rig.agent.command(&["journal", "export", &folder]).await;
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let again = rig.agent.command(&["journal", "export", &folder]).await;
    assert!(!again.status.success(), "a folder that is not empty is left alone");

    // The site writes on: what is not in the export stays behind.
    let image = log_image(&pair.source, &[&topic]).await;
    produce(&pair.source, &topic, 3_000).await;
    let imported = rig.gateway.command(&["import", &folder, "--output", "json"]).await;
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    assert!(log_image(&pair.cloud, &[&topic]).await == image, "the mirror is not what the export was");
    // Once more is harmless.
    let twice = rig.gateway.command(&["import", &folder]).await;
    assert!(twice.status.success(), "{}", String::from_utf8_lossy(&twice.stderr));
    assert!(log_image(&pair.cloud, &[&topic]).await == image, "a second import changed the mirror");

    // A byte changed on the way.
    let damaged = std::path::Path::new(&folder).join("frames-0.bin");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let refused = rig.gateway.command(&["import", &folder]).await;
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("frames-0.bin"), "{told}");

    rig.link.dark(false);
    rig.agent.restart();
    produce(&pair.source, &topic, 1_000).await;
    assert_equal(&pair.source, &pair.cloud, &[&topic], 26_000).await;
}
