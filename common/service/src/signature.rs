//! Signatures by a certificate's key over what leaves the wire: exports carried by hand. The key, the issuers and the
//! rules are those of TLS, so that whoever may open a session may sign, and nobody else.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, SignatureScheme};
use thiserror::Error;
use webpki::EndEntityCert;

/// Schemes to sign with, the key's own first.
const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Why nothing was signed, or a signature is not believed.
#[derive(Debug, Error)]
pub enum SignatureError {
    #[error("the private key cannot sign: {0}")]
    Key(rustls::Error),
    #[error("the private key has no scheme to sign with")]
    NoScheme,
    #[error("no certificate")]
    NoCertificate,
    #[error("the issuers' certificates cannot be used: {0}")]
    Issuers(#[from] VerifierBuilderError),
    #[error("the certificate is refused: {0}")]
    Chain(rustls::Error),
    #[error("signature scheme {0:#06x} is not supported")]
    Scheme(u16),
    #[error("the signature is not by the certificate's key over these bytes")]
    Mismatch,
}

/// A signature and how it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// TLS `SignatureScheme` (RFC 8446, 4.2.3).
    pub scheme: u16,
    pub bytes: Vec<u8>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Not now, but when it signed.
    Then,
}

/// Signs a message.
pub fn sign(key: &PrivateKeyDer<'_>, message: &[u8]) -> Result<Signature, SignatureError> {
    let key = any_supported_type(key).map_err(SignatureError::Key)?;
    let signer = key.choose_scheme(&SCHEMES).ok_or(SignatureError::NoScheme)?;
    let bytes = signer.sign(message).map_err(SignatureError::Key)?;
    Ok(Signature { scheme: signer.scheme().into(), bytes })
}

/// Checks that a chain (leaf first) is a client's and leads to one of `issuers`: now, or where it is only a matter of time,
/// at `signed_at`. A key that leaked after its certificate expired can claim any `signed_at`: whoever must not accept that
/// replaces the issuer.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    issuers: RootCertStore,
    now: SystemTime,
    signed_at: SystemTime,
) -> Result<Validity, SignatureError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SignatureError::NoCertificate)?;
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(issuers), provider).build()?;
    let valid = |at: SystemTime| {
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        verifier.verify_client_cert(leaf, intermediates, at).map(drop)
    };
    match valid(now) {
        Ok(()) => Ok(Validity::Now),
        Err(error) if is_matter_of_time(&error) => match valid(signed_at) {
            Ok(()) => Ok(Validity::Then),
            Err(_) => Err(SignatureError::Chain(error)),
        },
        Err(error) => Err(SignatureError::Chain(error)),
    }
}

/// Checks a signature by the key of a certificate, whose chain is another matter.
pub fn verify(leaf: &CertificateDer<'_>, message: &[u8], signature: &Signature) -> Result<(), SignatureError> {
    let CryptoProvider { signature_verification_algorithms: known, .. } = default_provider();
    let scheme = SignatureScheme::from(signature.scheme);
    let algorithms = known.mapping.iter().find(|(known, _)| *known == scheme).map(|(_, algorithms)| *algorithms);
    let algorithms = algorithms.ok_or(SignatureError::Scheme(signature.scheme))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| SignatureError::NoCertificate)?;
    // One scheme of TLS 1.2 stands for several curves.
    let holds = algorithms.iter().any(|&algorithm| leaf.verify_signature(algorithm, message, &signature.bytes).is_ok());
    if holds { Ok(()) } else { Err(SignatureError::Mismatch) }
}

fn is_matter_of_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};

    let rustls::Error::InvalidCertificate(error) = error else { return false };
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

/// SHA-256 over bytes that come in pieces.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256 {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sha256").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: CertificateDer<'static>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap().der().clone();
            Self { issuer: Issuer::new(params, key), certificate }
        }

        fn roots(&self) -> RootCertStore {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            roots
        }

        /// A certificate for the days of 2026 from `first` to `last`, and its key.
        fn issue(
            &self,
            algorithm: &'static rcgen::SignatureAlgorithm,
            usage: ExtendedKeyUsagePurpose,
        ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.extended_key_usages = vec![usage];
            params.not_before = rcgen::date_time_ymd(2026, 3, 1);
            params.not_after = rcgen::date_time_ymd(2026, 4, 1);
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
            (certificate, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        }
    }

    /// A day of March 2026, or after it.
    fn march(day: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_hours(24 * (20_512 + day))
    }

    #[test]
    fn every_kind_of_key_signs_and_every_damaged_bit_is_seen() {
        let authority = Authority::new();
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let (leaf, key) = authority.issue(algorithm, ExtendedKeyUsagePurpose::ClientAuth);
            let signature = sign(&key, b"what is signed").unwrap();
            verify(&leaf, b"what is signed", &signature).unwrap();
            assert!(matches!(verify(&leaf, b"what is signeD", &signature), Err(SignatureError::Mismatch)));
            for at in 0..signature.bytes.len() {
                let mut damaged = signature.clone();
                damaged.bytes[at] ^= 1;
                assert!(verify(&leaf, b"what is signed", &damaged).is_err(), "{algorithm:?} byte {at}");
            }
            let (other, _) = authority.issue(algorithm, ExtendedKeyUsagePurpose::ClientAuth);
            assert!(verify(&other, b"what is signed", &signature).is_err());
            let unknown = Signature { scheme: 0x0001, ..signature };
            assert!(matches!(verify(&leaf, b"what is signed", &unknown), Err(SignatureError::Scheme(1))));
        }
    }

    #[test]
    fn a_chain_is_a_clients_of_our_issuer_and_valid_now_or_then() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let issue = |usage| authority.issue(&rcgen::PKCS_ED25519, usage).0;
        let client = issue(ExtendedKeyUsagePurpose::ClientAuth);
        let check = |chain: &[_], issuers: &Authority, now, then| verify_chain(chain, issuers.roots(), now, then);
        let chain = [client];
        assert_eq!(check(&chain, &authority, march(10), march(5)).unwrap(), Validity::Now);
        assert_eq!(check(&chain, &authority, march(90), march(5)).unwrap(), Validity::Then);
        assert_eq!(
            check(&chain, &authority, march(10), march(90)).unwrap(),
            Validity::Now,
            "a site's clock may be wrong"
        );
        assert!(matches!(check(&chain, &authority, march(90), march(80)), Err(SignatureError::Chain(_))));
        assert!(matches!(check(&chain, &stranger, march(10), march(5)), Err(SignatureError::Chain(_))));
        let server = [issue(ExtendedKeyUsagePurpose::ServerAuth)];
        assert!(matches!(check(&server, &authority, march(10), march(5)), Err(SignatureError::Chain(_))));
        assert!(matches!(check(&[], &authority, march(10), march(5)), Err(SignatureError::NoCertificate)));
    }

    #[test]
    fn hashes_as_the_standard_says() {
        let mut hash = Sha256::default();
        hash.update(b"a");
        hash.update(b"bc");
        let expected = 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223_u128.to_be_bytes();
        assert_eq!(hash.finish().first_chunk(), Some(&expected));
    }
}
