//! The contenders as processes between two clusters: started, asked what they took of the machine, killed.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use tombolo_tests::broker::{ClusterSpec, KafkaCluster};
use tombolo_tests::child::{Program, Usage};
use tombolo_tests::mirror_maker::{self, MirrorMaker};
use tombolo_tests::rig::{Rig, RigSpec};
use tombolo_tests::scratch::Scratch;
use toml::Value;

use crate::Run;
use crate::load::Load;

/// A broker's compiler has worked off by then what was found worth its while.
const COMPILING: Duration = Duration::from_secs(3);

/// Who mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Contender {
    Tombolo,
    MirrorMaker,
    Copier,
}

impl Contender {
    pub(crate) const ALL: [Self; 3] = [Self::Tombolo, Self::MirrorMaker, Self::Copier];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tombolo => "tombolo",
            Self::MirrorMaker => "MirrorMaker 2",
            Self::Copier => "raw copier",
        }
    }
}

/// What a run has of its own.
#[derive(Clone, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) source: &'a KafkaCluster,
    pub(crate) cloud: &'a KafkaCluster,
    /// With their partitions.
    pub(crate) topics: &'a [(String, i32)],
    pub(crate) mirror_maker: &'a [(&'a str, &'a str)],
    pub(crate) tombolo: RigSpec,
}

/// A contender at work.
#[derive(Debug)]
pub(crate) enum Running {
    Tombolo(Box<Rig>),
    MirrorMaker(MirrorMaker),
    Copier { program: Program, _scratch: Scratch },
}

/// A cluster of one broker, as Kafka's own scripts start it.
pub(crate) async fn broker() -> KafkaCluster {
    KafkaCluster::start(ClusterSpec::single().steady().heap_mib(1024)).await
}

/// A broker as brokers are that run for days: its code for writing is compiled.
pub(crate) async fn warm_broker() -> KafkaCluster {
    let broker = broker().await;
    for (records, record_bytes, codec, batch) in
        [(300_000, 1_000, "zstd", 10_000), (200_000, 1_000, "none", 10_000), (20_000, 100, "none", 1)]
    {
        Load { partitions: 6, records, record_bytes, codec, batch }.write(&broker, "warm-up").await;
    }
    tokio::time::sleep(COMPILING).await;
    broker
}

/// The settings that a report prints.
pub(crate) fn settings(run: &Run) -> Vec<(String, String)> {
    let others = |settings: &[(String, Value)]| match settings {
        [] => "all defaults".to_owned(),
        some => some.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", "),
    };
    let (agent, gateway) = (others(&run.agent), others(&run.gateway));
    vec![
        (
            "brokers".to_owned(),
            "one for each cluster, on this machine, G1, heap 1 GiB, no TLS; each run has a new cloud, which half a million \
             records have warmed up"
                .to_owned(),
        ),
        (
            "tombolo".to_owned(),
            format!("deploy/agent.toml ({agent}), deploy/gateway.toml ({gateway}); QUIC with mutual TLS"),
        ),
        (
            "MirrorMaker 2".to_owned(),
            format!("tests/bench/mirror-maker.properties; java {}", mirror_maker::JVM.join(" ")),
        ),
        (
            "raw copier".to_owned(),
            "tests/bench/copier.rs: fetches of 16 MiB, five Produce requests in flight".to_owned(),
        ),
    ]
}

/// A tombolo for these topics, with every setting at its default but for the command line's.
pub(crate) fn tombolo(run: &Run, topics: &[(String, i32)]) -> RigSpec {
    let names: Vec<&str> = topics.iter().map(|(name, _)| name.as_str()).collect();
    run.tuned(RigSpec::new(&names).direct())
}

impl Running {
    pub(crate) async fn start(contender: Contender, start: Start<'_>) -> Self {
        let Start { source, cloud, topics, mirror_maker, tombolo } = start;
        match contender {
            Contender::Tombolo => {
                let mut rig = Rig::start(source, cloud, tombolo).await;
                // A machine at its limit may make them wait for brokers: figures are looked at here, not logs.
                rig.agent.allow("WARN");
                rig.gateway.allow("WARN");
                Self::Tombolo(Box::new(rig))
            }
            Contender::MirrorMaker => {
                let names: Vec<&str> = topics.iter().map(|(name, _)| name.as_str()).collect();
                Self::MirrorMaker(MirrorMaker::start(source, cloud, &names.join(","), mirror_maker).await)
            }
            Contender::Copier => {
                for (topic, partitions) in topics {
                    cloud.create_topic(topic, *partitions, 1, &[]).await;
                }
                let scratch = Scratch::new("copier");
                let mut arguments: Vec<String> =
                    ["copy", "--source", source.bootstrap(), "--cloud", cloud.bootstrap()].map(str::to_owned).to_vec();
                arguments.extend(topics.iter().map(|(topic, partitions)| format!("{topic}:{partitions}")));
                let program = std::env::current_exe().expect("a process knows its program");
                let log = scratch.path().join("log");
                let program = Program::start(Path::new(&program), &arguments, scratch.path(), &log);
                Self::Copier { program, _scratch: scratch }
            }
        }
    }

    /// Panics if it has ended by itself.
    pub(crate) fn assert_running(&mut self) {
        match self {
            Self::Tombolo(rig) => {
                assert!(rig.agent.running(), "the agent ended:\n{}", rig.agent.log());
                assert!(rig.gateway.running(), "the gateway ended:\n{}", rig.gateway.log());
            }
            Self::MirrorMaker(mirror_maker) => mirror_maker.assert_running(),
            Self::Copier { program, .. } => assert_eq!(program.ended(), None, "the copier ended"),
        }
    }

    /// What each of its processes took of the machine.
    pub(crate) fn usage(&mut self) -> Vec<Usage> {
        match self {
            Self::Tombolo(rig) => vec![rig.agent.usage(), rig.gateway.usage()],
            Self::MirrorMaker(mirror_maker) => vec![mirror_maker.usage()],
            Self::Copier { program, .. } => vec![program.usage()],
        }
    }

    /// Bytes of frames that went over the link; only tombolo has one.
    pub(crate) async fn link_bytes(&self) -> Option<f64> {
        match self {
            Self::Tombolo(rig) => Some(rig.gateway.metric("tombolo_gateway_received_bytes_total").await),
            Self::MirrorMaker(_) | Self::Copier { .. } => None,
        }
    }
}
