//! The daemons as processes: started, asked, stopped, killed and read.

use std::time::Duration;

use tombolo_tests::broker::{shared_pair, unique_name};
use tombolo_tests::compare::await_equal;
use tombolo_tests::process::Binary;
use tombolo_tests::producer::{Shape, Workload};
use tombolo_tests::rig::{Rig, RigSpec};

#[tokio::test]
async fn a_rig_mirrors_answers_and_outlives_its_kills() {
    let pair = shared_pair().await;
    let topic = unique_name("orders");
    pair.source.create_topic(&topic, 3, 1, &[]).await;
    let mut rig = Rig::start(&pair.source, &pair.cloud, RigSpec::new(&[&topic])).await;
    let workload = Workload::new().topic(&topic, 3).shape(Shape::Mixed);
    workload.produce(&pair.source.client_config(), 300).await;
    assert_eq!(await_equal(&pair.source, &pair.cloud, &[&topic], Duration::from_mins(1)).await, 300);
    assert!(rig.agent.vm_hwm_bytes() > 1 << 20);
    assert!(rig.agent.status().await.is_object());
    assert!(!rig.gateway.metrics().await.is_empty());

    rig.gateway.kill();
    assert!(!rig.gateway.running());
    rig.gateway.restart();
    rig.agent.restart();
    workload.produce(&pair.source.client_config(), 300).await;
    assert_eq!(await_equal(&pair.source, &pair.cloud, &[&topic], Duration::from_mins(1)).await, 600);

    rig.agent.pause();
    rig.agent.resume();
    let status = rig.agent.terminate(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");
    assert!(rig.agent.log().contains("INFO"));
}

#[tokio::test]
async fn a_command_runs_to_its_end() {
    let refused = Binary::Agent.run(&["run", "--config", "/nowhere.toml"]).await;
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/nowhere.toml"));
}
