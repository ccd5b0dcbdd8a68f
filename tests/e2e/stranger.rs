//! A QUIC client that holds a link's certificate and speaks no protocol of ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tombolo_proto::wire::ALPN;
use tombolo_service::tls;

/// What it shows, and whom it trusts.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What it sends.
#[derive(Debug)]
pub(crate) enum Garbage {
    Control(Vec<u8>),
    FinishedControl,
    Frame(Vec<u8>),
}

/// An open connection to a gateway.
#[derive(Debug)]
pub(crate) struct Stranger {
    _endpoint: Endpoint,
    connection: Connection,
}

impl Stranger {
    pub(crate) async fn dial(gateway: SocketAddr, files: &Files) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = tls::cert_chain(&files.certificate).unwrap();
        let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(tls::roots(&files.ca).unwrap())
            .with_client_auth_cert(chain, tls::private_key(&files.key).unwrap())
            .unwrap();
        crypto.alpn_protocols = vec![ALPN.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connection = endpoint.connect_with(config, gateway, "localhost").unwrap().await.unwrap();
        Self { _endpoint: endpoint, connection }
    }

    /// Sends it and waits until the gateway closes the connection: its code and its reason.
    pub(crate) async fn send(self, garbage: Garbage) -> (u64, String) {
        let (mut control, _answers) = self.connection.open_bi().await.unwrap();
        match garbage {
            Garbage::Control(bytes) => control.write_all(&bytes).await.unwrap(),
            Garbage::FinishedControl => control.finish().unwrap(),
            Garbage::Frame(bytes) => {
                // A stream begins for the gateway with its first byte.
                control.write_all(&[0]).await.unwrap();
                let mut data = self.connection.open_uni().await.unwrap();
                data.write_all(&bytes).await.unwrap();
            }
        }
        let closed = self.connection.closed().await;
        let ConnectionError::ApplicationClosed(close) = closed else { panic!("not closed by the gateway: {closed}") };
        (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
    }
}
