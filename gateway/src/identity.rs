//! Who a certificate belongs to: the link's name is its URI SAN `spiffe://<domain>/link/<name>`. The common name and
//! everything else in the certificate mean nothing.

use std::fmt;
use std::sync::Arc;

use tombolo_proto::id::{LinkName, NameError};
use tombolo_service::tls::uri_names;

/// Trust domain of the links (SPIFFE: the URI's authority), without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(Arc<str>);

/// A text that is no trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no trust domain: 1 to 255 of a-z, 0-9, '.', '-' and '_'")]
pub struct DomainError(String);

impl TrustDomain {
    /// Checks the characters that SPIFFE allows.
    pub fn new(text: &str) -> Result<Self, DomainError> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if (1..=255).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.into()))
        } else {
            Err(DomainError(text.chars().take(80).collect()))
        }
    }

    /// The URI of a link's certificate.
    pub fn link_uri(&self, link: &LinkName) -> String {
        format!("spiffe://{self}/link/{link}")
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a certificate names no link. Its chain was verified before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The peer showed none, or not of a kind we know.
    #[error("no client certificate")]
    Missing,
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Malformed,
    /// SPIFFE demands exactly one URI SAN.
    #[error("the certificate has {0} URI names, exactly one is needed")]
    Uris(usize),
    /// The URI is not of this gateway's links.
    #[error("the certificate is for {found:?}, links of this gateway are spiffe://{domain}/link/NAME")]
    Foreign {
        /// The URI, cut.
        found: String,
        /// Our trust domain.
        domain: TrustDomain,
    },
    /// The last part of the URI is no link name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The link that a certificate (DER) belongs to.
pub(crate) fn link_of(certificate: &[u8], domain: &TrustDomain) -> Result<LinkName, IdentityError> {
    let uris = uri_names(certificate).ok_or(IdentityError::Malformed)?;
    match uris.as_slice() {
        [uri] => link_of_uri(uri, domain),
        _ => Err(IdentityError::Uris(uris.len())),
    }
}

fn link_of_uri(uri: &str, domain: &TrustDomain) -> Result<LinkName, IdentityError> {
    let name = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_prefix(&*domain.0))
        .and_then(|rest| rest.strip_prefix("/link/"))
        .ok_or_else(|| IdentityError::Foreign { found: uri.chars().take(200).collect(), domain: domain.clone() })?;
    Ok(LinkName::new(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("example.net").unwrap()
    }

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().unwrap()));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_uri_names_the_link() {
        let link = LinkName::new("ship-17").unwrap();
        let uri = domain().link_uri(&link);
        assert_eq!(uri, "spiffe://example.net/link/ship-17");
        assert_eq!(link_of(&certificate(&[&uri]), &domain()), Ok(link));
    }

    #[test]
    fn other_domains_paths_and_names_are_refused() {
        for uri in [
            "spiffe://example.org/link/ship-17",
            "spiffe://example.net.evil.org/link/ship-17",
            "spiffe://example.net/agent/ship-17",
            "https://example.net/link/ship-17",
            "spiffe://example.net/link",
        ] {
            let refused = link_of(&certificate(&[uri]), &domain()).unwrap_err();
            assert!(matches!(refused, IdentityError::Foreign { .. }), "{uri}: {refused}");
        }
        for uri in ["spiffe://example.net/link/", "spiffe://example.net/link/a/b", "spiffe://example.net/link/%61"] {
            let refused = link_of(&certificate(&[uri]), &domain()).unwrap_err();
            assert!(matches!(refused, IdentityError::Name(_)), "{uri}: {refused}");
        }
    }

    #[test]
    fn exactly_one_uri_is_needed() {
        assert_eq!(link_of(&certificate(&[]), &domain()), Err(IdentityError::Uris(0)));
        let two = ["spiffe://example.net/link/a", "spiffe://example.net/link/b"];
        assert_eq!(link_of(&certificate(&two), &domain()), Err(IdentityError::Uris(2)));
        assert_eq!(link_of(b"no certificate", &domain()), Err(IdentityError::Malformed));
    }

    #[test]
    fn domains_are_checked() {
        for bad in ["", "Example.net", "example.net:443", "a/b", &"x".repeat(256)] {
            assert!(TrustDomain::new(bad).is_err(), "{bad}");
        }
    }
}
