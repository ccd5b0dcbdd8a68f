//! The endpoints, asked over real sockets as an operator's tools do.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::*;
use crate::readiness::Latch;
use crate::status_client;

const DEADLINE: Duration = Duration::from_secs(10);

struct Daemon {
    http: AdminHttp,
    latch: Option<Latch>,
    status: watch::Sender<StatusDocument>,
}

fn daemon() -> Daemon {
    let (readiness, latch) = Readiness::new();
    let (status, receiver) = watch::channel(StatusDocument::new(&json!({"link": "down"})));
    let settings = HttpSettings { listen: "127.0.0.1:0".parse().unwrap() };
    let sources = Sources { readiness, metrics: crate::metrics::install().unwrap(), status: receiver };
    Daemon { http: AdminHttp::start(settings, sources).unwrap(), latch: Some(latch), status }
}

/// Status code and whole answer.
fn ask(daemon: &Daemon, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(daemon.http.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}

#[test]
fn is_live_at_once_and_ready_when_the_latch_is_gone() {
    let mut daemon = daemon();
    assert_eq!(ask(&daemon, "GET", "/livez").0, 200);
    assert_eq!(ask(&daemon, "GET", "/readyz").0, 503);
    daemon.latch.take();
    assert_eq!(ask(&daemon, "GET", "/readyz").0, 200);
}

#[test]
fn serves_metrics_as_prometheus_text() {
    let daemon = daemon();
    crate::metrics::build_info("tombolo-http-test", "0");
    let (code, answer) = ask(&daemon, "GET", "/metrics");
    assert_eq!(code, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("tombolo_build_info{program=\"tombolo-http-test\""), "{answer}");
}

#[test]
fn knows_no_other_paths_and_changes_nothing() {
    let daemon = daemon();
    assert_eq!(ask(&daemon, "GET", "/").0, 404);
    assert_eq!(ask(&daemon, "POST", "/status").0, 405);
    assert_eq!(ask(&daemon, "DELETE", "/livez").0, 405);
}

#[tokio::test]
async fn client_gets_the_newest_status() {
    let daemon = daemon();
    let address = daemon.http.address();
    assert_eq!(status_client::fetch(address, DEADLINE).await.unwrap(), json!({"link": "down"}));
    daemon.status.send_replace(StatusDocument::new(&json!({"link": "up"})));
    assert_eq!(status_client::fetch(address, DEADLINE).await.unwrap(), json!({"link": "up"}));
}

#[test]
fn answers_while_the_runtime_of_the_data_path_hangs() {
    let daemon = daemon();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let code = runtime.block_on(async {
        // Blocks the only thread of this runtime, as a data path that hangs would.
        ask(&daemon, "GET", "/status").0
    });
    assert_eq!(code, 200);
}

#[test]
fn refuses_addresses_that_others_can_reach() {
    for listen in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1"] {
        let settings = HttpSettings { listen: listen.parse().unwrap() };
        let error = settings.check().unwrap_err();
        assert_eq!(error.key(), Some("http.listen"), "{listen}");
        assert!(error.to_string().contains("not on loopback"), "{error}");
    }
    for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
        let settings = HttpSettings { listen: listen.parse().unwrap() };
        assert!(settings.check().is_ok(), "{listen}");
    }
}

#[test]
fn names_the_key_when_the_port_is_taken() {
    let first = daemon();
    let (readiness, _latch) = Readiness::new();
    let error = AdminHttp::start(
        HttpSettings { listen: first.http.address() },
        Sources {
            readiness,
            metrics: crate::metrics::install().unwrap(),
            status: watch::channel(StatusDocument::default()).1,
        },
    )
    .unwrap_err();
    assert_eq!(error.key(), Some("http.listen"));
    assert!(error.to_string().contains("in use"), "{error}");
}

#[test]
fn frees_its_port_when_dropped() {
    let daemon = daemon();
    let address = daemon.http.address();
    drop(daemon);
    assert!(TcpStream::connect(address).is_err());
}
