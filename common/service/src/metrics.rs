//! The process-wide metrics recorder and its Prometheus text.
//!
//! Crates record with the macros of `metrics`; names begin with `tombolo_` and end in their unit. Every crate describes
//! its metrics once, through [`describe`], so that `/metrics` carries a HELP line for each.

use std::sync::OnceLock;

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use thiserror::Error;

/// Upper bounds for histograms named `*_seconds`: from a broker on the same machine to a link that was dark for an hour.
const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

/// Reads what the process recorded. Clones read the same.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

/// Another recorder was installed before ours, or the exporter refused its settings.
#[derive(Debug, Error)]
#[error("cannot install the metrics recorder: {0}")]
pub struct MetricsError(#[from] BuildError);

/// One metric, for [`describe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    pub kind: Kind,
    pub name: &'static str,
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Installs the recorder, or gives the one that is installed: the demo runs both daemons in one process.
pub fn install() -> Result<Metrics, MetricsError> {
    static INSTALLED: OnceLock<Metrics> = OnceLock::new();
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(metrics) = INSTALLED.get() {
        return Ok(metrics.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    let metrics = Metrics(handle);
    describe(&[Description {
        kind: Kind::Gauge,
        name: "tombolo_build_info",
        help: "Always 1; the labels say which build runs",
    }]);
    Ok(INSTALLED.get_or_init(|| metrics).clone())
}

/// Gives each metric its HELP line.
pub fn describe(descriptions: &[Description]) {
    for &Description { kind, name, help } in descriptions {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, Unit::Count, help),
            Kind::Gauge => metrics::describe_gauge!(name, Unit::Count, help),
            Kind::Histogram => metrics::describe_histogram!(name, Unit::Count, help),
        }
    }
}

/// Sets `tombolo_build_info{program, version}` to 1.
pub fn build_info(program: &'static str, version: &'static str) {
    metrics::gauge!("tombolo_build_info", "program" => program, "version" => version).set(1.0);
}

impl Metrics {
    /// Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds recorded histogram samples into their buckets. Someone must call this or [`Metrics::render`] every few
    /// seconds, or unscraped samples pile up in memory; the HTTP thread does.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_recorded_and_described() {
        let metrics = install().unwrap();
        describe(&[Description { kind: Kind::Counter, name: "tombolo_test_total", help: "Only a test" }]);
        metrics::counter!("tombolo_test_total", "topic" => "a").increment(3);
        metrics::histogram!("tombolo_test_seconds").record(0.2);
        build_info("tombolo-test", "1.2.3");
        let text = metrics.render();
        for expected in [
            "# HELP tombolo_test_total Only a test",
            "# TYPE tombolo_test_total counter",
            "tombolo_test_total{topic=\"a\"} 3",
            "tombolo_test_seconds_bucket{le=\"0.25\"} 1",
            "tombolo_build_info{program=\"tombolo-test\",version=\"1.2.3\"} 1",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn installs_once_for_all_callers() {
        let (first, second) = (install().unwrap(), install().unwrap());
        metrics::counter!("tombolo_shared_total").increment(1);
        assert!(first.render().contains("tombolo_shared_total 1"));
        assert!(second.render().contains("tombolo_shared_total 1"));
    }
}
