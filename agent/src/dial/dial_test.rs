//! What link settings are refused, what the ends of a connection mean, and that the dialer speaks to a QUIC server.

use std::net::Ipv4Addr;

use quinn::ServerConfig;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

const LINK: &str = "gateway = [\"127.0.0.1:4433\"]\nca = \"ca.pem\"\ncertificate = \"link.pem\"\nkey = \"link.key\"\n";

/// A certificate that is its own issuer, as files of a link.
fn files() -> (tempfile::TempDir, CertificateDer<'static>, PrivateKeyDer<'static>) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "gw.example.net".to_owned()]).unwrap();
    for name in ["ca.pem", "link.pem"] {
        std::fs::write(folder.path().join(name), made.cert.pem()).unwrap();
    }
    std::fs::write(folder.path().join("link.key"), made.signing_key.serialize_pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    (folder, made.cert.into(), key)
}

fn check(folder: &Path, text: &str) -> Result<LinkSettings, SettingsError> {
    tombolo_service::settings::parse::<RawLink>(text)?.check(folder)
}

#[test]
fn each_bad_value_is_named_by_its_key() {
    let (folder, ..) = files();
    assert!(check(folder.path(), LINK).is_ok());
    let table = [
        ("gateway = [\"127.0.0.1:4433\"]", "gateway = []", "gateway"),
        ("gateway = [\"127.0.0.1:4433\"]", "gateway = [\"a:1\", \"b\"]", "gateway[1]"),
        ("gateway = [\"127.0.0.1:4433\"]", "gateway = [\"a:0\"]", "gateway[0]"),
        ("gateway = [\"127.0.0.1:4433\"]", "gateway = [\"::1:443\"]", "gateway[0]"),
        ("gateway = [\"127.0.0.1:4433\"]", "gateway = [\"a_b!:1\"]", "gateway[0]"),
        ("ca.pem", "none.pem", "ca"),
        ("link.pem", "none.pem", "certificate"),
        ("link.key", "ca.pem", "key"),
        ("key = ", "idle_timeout = \"1 ms\"\nkey = ", "idle_timeout"),
        ("key = ", "keep_alive = \"30 s\"\nkey = ", "keep_alive"),
        ("key = ", "send_window = \"1 B\"\nkey = ", "send_window"),
        ("key = ", "initial_rtt = \"1 min\"\nkey = ", "initial_rtt"),
        ("key = ", "backoff_min = \"31 s\"\nkey = ", "backoff_min"),
        ("key = ", "server_name = \"a b\"\nkey = ", "server_name"),
    ];
    for (old, new, key) in table {
        let error = check(folder.path(), &LINK.replace(old, new)).unwrap_err();
        assert_eq!(error.key(), Some(key), "{new}: {error}");
    }
    for good in ["keep_alive = \"0 s\"", "congestion = \"bbr\"", "server_name = \"gw.example.net\""] {
        assert!(check(folder.path(), &format!("{LINK}{good}")).is_ok(), "{good}");
    }
}

#[test]
fn addresses_are_read_with_and_without_brackets() {
    assert_eq!(address("gw.example.net:443"), Some(("gw.example.net".to_owned(), 443)));
    assert_eq!(address("[::1]:443"), Some(("::1".to_owned(), 443)));
    for bad in ["", ":443", "gw", "gw:", "gw:x", "gw:70000", "[::1:443", "a b:1"] {
        assert_eq!(address(bad), None, "{bad}");
    }
}

#[test]
fn only_what_a_person_can_mend_waits_long() {
    let closed = |code| LinkError::Closed { gateway: String::new(), code, reason: String::new() };
    for code in CloseCode::ALL {
        let passes_by_itself = matches!(code, CloseCode::Shutdown | CloseCode::Unavailable);
        assert_eq!(closed(Some(code)).needs_a_person(), !passes_by_itself, "{code:?}");
    }
    assert!(!closed(None).needs_a_person());
    assert!(!LinkError::of("gw", &ConnectionError::TimedOut).needs_a_person());
    assert_eq!(LinkError::of("gw:1", &ConnectionError::TimedOut).to_string(), "gw:1: connection lost: timed out");
}

/// A gateway that does one thing with each connection.
struct Server {
    endpoint: Endpoint,
    folder: tempfile::TempDir,
}

impl Server {
    fn new(alpn: &[u8]) -> Self {
        let (folder, certificate, key) = files();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
        let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self { endpoint, folder }
    }

    fn link(&self) -> LinkSettings {
        let port = self.endpoint.local_addr().unwrap().port();
        check(self.folder.path(), &LINK.replace("4433", &port.to_string())).unwrap()
    }

    async fn accept(&self) -> Connection {
        self.endpoint.accept().await.unwrap().await.unwrap()
    }
}

#[tokio::test]
async fn a_refusal_tells_the_gateways_reason() {
    let server = Server::new(ALPN);
    let link = server.link();
    let refuse = async {
        let connection = server.accept().await;
        connection.close(VarInt::from_u32(CloseCode::UnknownLink.number()), b"no link ship-17");
        connection.closed().await
    };
    let (outcomes, _) = tokio::join!(link.probe(Duration::from_secs(5)), refuse);
    let [(_, Err(error))] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert!(error.to_string().ends_with("closed by the gateway: UnknownLink, no link ship-17"), "{error}");
}

#[tokio::test]
async fn another_protocol_is_a_refused_handshake() {
    let server = Server::new(b"http/3");
    let link = server.link();
    let refuse = async {
        let refused = server.endpoint.accept().await.unwrap().await;
        assert!(refused.is_err());
    };
    let (outcomes, ()) = tokio::join!(link.probe(Duration::from_secs(5)), refuse);
    let [(_, Err(error @ LinkError::Handshake { .. }))] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert!(error.needs_a_person());
}

#[tokio::test]
async fn a_probe_that_is_not_refused_is_accepted() {
    let server = Server::new(ALPN);
    let link = server.link();
    let accept = async { server.accept().await.closed().await };
    let (outcomes, ended) = tokio::join!(link.probe(Duration::from_millis(300)), accept);
    assert!(matches!(outcomes.as_slice(), [(_, Ok(_))]), "{outcomes:?}");
    assert!(matches!(ended, ConnectionError::ApplicationClosed(_)), "{ended}");
}

#[tokio::test]
async fn dials_again_after_each_refusal() {
    let server = Server::new(ALPN);
    let link = check(
        server.folder.path(),
        &(LINK.replace("4433", &server.endpoint.local_addr().unwrap().port().to_string())
            + "backoff_min = \"10 ms\"\nbackoff_max = \"20 ms\"\n"),
    )
    .unwrap();
    let (events, mut heard) = mpsc::channel(8);
    let stop = CancellationToken::new();
    let refuse_twice = async {
        for _ in 0..2 {
            let connection = server.accept().await;
            connection.close(VarInt::from_u32(CloseCode::Unavailable.number()), b"later");
        }
        let (mut reasons, mut links) = (Vec::new(), Vec::new());
        while reasons.len() < 2 {
            match heard.recv().await.unwrap() {
                LinkEvent::Down { reason } => reasons.push(reason),
                // An owner that lets go of a link closes it.
                LinkEvent::Up(link) => links.push(link),
                LinkEvent::WriterFree | LinkEvent::Stats(_) => {}
                event @ (LinkEvent::Message(_) | LinkEvent::Breach { .. }) => panic!("{event:?}"),
            }
        }
        stop.cancel();
        reasons
    };
    let (reasons, ()) = tokio::join!(refuse_twice, run(link, events, stop.clone()));
    for reason in reasons {
        assert!(reason.contains("Unavailable, later"), "{reason}");
    }
}
