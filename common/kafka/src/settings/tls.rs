//! TLS towards brokers: whom to trust, which certificate to show.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{Properties, SettingsError};

const CA: &str = "ssl.ca.location";
const CERTIFICATE: &str = "ssl.certificate.location";
const KEY: &str = "ssl.key.location";
const NAME_CHECK: &str = "ssl.endpoint.identification.algorithm";
const VERIFY: &str = "enable.ssl.certificate.verification";
const PEM_FILE: &str = "the path of a PEM file";
/// Where distributions keep the public certificate authorities in one file (Debian, Fedora, SUSE, Alpine).
const SYSTEM_CAS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const MAX_PEM_BYTES: u64 = 4 << 20;

/// A checked TLS configuration.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("client_certificate", &self.config.client_auth_cert_resolver.has_certs()).finish()
    }
}

impl Tls {
    pub(super) const PROPERTIES: &[&str] = &[CA, CERTIFICATE, KEY, NAME_CHECK, VERIFY];

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    pub(super) fn from_properties(properties: &mut Properties<'_>) -> Result<Self, SettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = verifier(properties, &provider)?;
        let identity = match (properties.take(CERTIFICATE), properties.take(KEY)) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificates(CERTIFICATE, certificate)?, private_key(key)?)),
            (Some(_), None) => {
                return Err(SettingsError::new(KEY, format!("is missing beside {CERTIFICATE}"), PEM_FILE));
            }
            (None, Some(_)) => {
                return Err(SettingsError::new(CERTIFICATE, format!("is missing beside {KEY}"), PEM_FILE));
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SettingsError::new("security.protocol", error.to_string(), "ssl, sasl_ssl"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| SettingsError::new(KEY, error.to_string(), "the certificate's own private key"))?,
        };
        Ok(Self { config: Arc::new(config) })
    }
}

fn verifier(
    properties: &mut Properties<'_>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, SettingsError> {
    let check_name = match properties.take(NAME_CHECK) {
        None | Some("https") => true,
        Some("none" | "") => false,
        Some(other) => {
            return Err(SettingsError::new(NAME_CHECK, format!("{other:?} is not supported"), "https, none"));
        }
    };
    let ca = properties.take(CA);
    if !properties.flag(VERIFY, true)? {
        if ca.is_some() {
            return Err(SettingsError::new(CA, format!("has no use with {VERIFY} = false"), "one of the two"));
        }
        tracing::warn!("{VERIFY} = false: anybody on the way can read and change what goes to the brokers");
        return Ok(Arc::new(TrustAll(provider.signature_verification_algorithms)));
    }
    let mut roots = RootCertStore::empty();
    for certificate in match ca {
        Some(path) => certificates(CA, path)?,
        None => system_certificates()?,
    } {
        // A bundle may hold a certificate that webpki cannot use; one that was named on purpose must be usable.
        if let Err(error) = roots.add(certificate)
            && ca.is_some()
        {
            return Err(SettingsError::new(CA, error.to_string(), "PEM certificates of certificate authorities"));
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| SettingsError::new(CA, error.to_string(), "PEM certificates of certificate authorities"))?;
    Ok(if check_name { verifier } else { Arc::new(AnyName(verifier)) })
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    match SYSTEM_CAS.iter().find(|path| std::path::Path::new(path).is_file()) {
        Some(path) => certificates(CA, path),
        None => Err(SettingsError::new(CA, "is missing, and the system has no known bundle of authorities", PEM_FILE)),
    }
}

fn certificates(property: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let pem = read(property, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(SettingsError::new(property, format!("{path} holds no certificate"), PEM_FILE)),
        Err(error) => Err(SettingsError::new(property, format!("{path}: {error}"), PEM_FILE)),
    }
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, SettingsError> {
    const ALLOWED: &str = "the path of a PEM file with one private key, not encrypted";
    PrivateKeyDer::from_pem_slice(&read(KEY, path)?)
        .map_err(|error| SettingsError::new(KEY, format!("{path}: {error}"), ALLOWED))
}

fn read(property: &str, path: &str) -> Result<Vec<u8>, SettingsError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut content))
        .and_then(|size| match size as u64 {
            0..=MAX_PEM_BYTES => Ok(content),
            _ => Err(io::Error::other("larger than 4 MiB")),
        })
        .map_err(|error| SettingsError::new(property, format!("{path} cannot be read: {error}"), PEM_FILE))
}

/// Checks the chain, not the name in it (`ssl.endpoint.identification.algorithm = none`).
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: the chain is good here (webpki `verify_server_cert`).
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Takes every certificate (`enable.ssl.certificate.verification = false`).
#[derive(Debug)]
struct TrustAll(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
