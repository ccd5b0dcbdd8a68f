//! Certificates and keys from PEM files, with errors that name the file.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::settings::SettingsError;

/// Why a PEM file cannot be used.
#[derive(Debug, Error)]
pub enum TlsFileError {
    #[error("{}: cannot be read: {source}", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{}: holds no {what}", path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{}: certificate {index} is no trust anchor: {source}", path.display())]
    Anchor {
        path: PathBuf,
        index: usize,
        #[source]
        source: rustls::Error,
    },
}

impl TlsFileError {
    /// As the error of the settings key that named the file.
    pub fn at_key(&self, key: &str) -> SettingsError {
        let allowed = match self {
            Self::Empty { what: KEY, .. } => "a PEM file with an unencrypted PKCS#8, SEC1 or PKCS#1 key",
            Self::Pem { .. } | Self::Empty { .. } | Self::Anchor { .. } => "a readable PEM file",
        };
        SettingsError::new(key, self.to_string(), allowed)
    }
}

const KEY: &str = "private key";
const CERTIFICATE: &str = "certificate";

/// All certificates of the file, in its order: the leaf first, then its issuers.
pub fn cert_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| pem_error(path, source, CERTIFICATE))?;
    if chain.is_empty() {
        return Err(empty(path, CERTIFICATE));
    }
    Ok(chain)
}

/// The URI names (RFC 5280, subjectAltName) of a certificate; `None` where it is malformed.
pub fn uri_names(certificate: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    let uri = |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None };
    Some(names.iter().flat_map(|names| &names.value.general_names).filter_map(uri).collect())
}

/// The first private key of the file. A key that others on this machine may read is worth a WARN, not a refusal:
/// secrets mounted into containers often look like that.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|source| pem_error(path, source, KEY))?;
    if let Some(mode) = open_to_others(path) {
        tracing::warn!(
            file = %path.display(),
            mode = format!("{mode:04o}"),
            "private key is readable for others: chmod 600"
        );
    }
    Ok(key)
}

/// The certificates of the file as trust anchors.
pub fn roots(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in cert_chain(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|source| TlsFileError::Anchor { path: path.to_owned(), index, source })?;
    }
    Ok(roots)
}

/// The permission bits, if group or others may read the file.
fn open_to_others(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;

    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o044 != 0).then_some(mode)
}

fn pem_error(path: &Path, source: pem::Error, what: &'static str) -> TlsFileError {
    if matches!(source, pem::Error::NoItemsFound) {
        return empty(path, what);
    }
    TlsFileError::Pem { path: path.to_owned(), source }
}

fn empty(path: &Path, what: &'static str) -> TlsFileError {
    TlsFileError::Empty { path: path.to_owned(), what }
}

#[cfg(test)]
#[path = "tls/tls_test.rs"]
mod tls_test;
