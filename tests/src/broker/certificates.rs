//! Keys and certificates for brokers with TLS: a CA, the brokers' certificate for loopback, a client's certificate.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::scratch::Scratch;

/// PEM files in the cluster's folder.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// What clients and brokers trust.
    pub ca: PathBuf,
    /// A client's certificate and key: brokers with [`Listener::Ssl`](super::Listener::Ssl) ask for one.
    pub client_certificate: PathBuf,
    pub client_key: PathBuf,
    /// Key and chain in one file, as a broker's `ssl.keystore.type=PEM` wants it.
    pub(super) broker_key_store: PathBuf,
}

impl Certificates {
    pub(super) fn make(scratch: &Scratch) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names, no bad name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tombolo tests");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        let ca = params.self_signed(&key).expect("a CA can sign itself");
        let issuer = Issuer::new(params, key);

        let (broker, broker_key) = leaf(&issuer, "broker", ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = leaf(&issuer, "client", ExtendedKeyUsagePurpose::ClientAuth);
        Self {
            ca: scratch.write("ca.pem", &ca.pem()),
            client_certificate: scratch.write("client.pem", &client),
            client_key: scratch.write("client.key", &client_key),
            broker_key_store: scratch.write("broker.pem", &format!("{broker_key}{broker}")),
        }
    }
}

fn leaf(issuer: &Issuer<'_, KeyPair>, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("the names are good");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = params.signed_by(&key, issuer).expect("the CA can sign");
    (certificate.pem(), key.serialize_pem())
}
