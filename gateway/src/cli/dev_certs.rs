//! `dev-certs`: certificates for tests. Not for production: the issuer's key lies beside them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tombolo_proto::id::{LinkName, NameError};

use super::{DevCerts, failed};
use crate::identity::{DomainError, TrustDomain};

const CA_NAME: &str = "tombolo test CA";
const CA: &str = "ca";
const GATEWAY: &str = "gateway";
/// Names under which a gateway on this machine is reached.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
enum CertsError {
    #[error("--link: {0}")]
    Link(#[from] NameError),
    #[error("--domain: {0}")]
    Domain(#[from] DomainError),
    #[error("a link cannot be named {0:?}: its files would be those of the {0}")]
    Reserved(String),
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {source}; remove it to begin anew", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("{} is there but ca.key is not: without it nothing can be issued; use another folder", _0.display())]
    NoKey(PathBuf),
    #[error("certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

pub(super) fn run(args: &DevCerts) -> ExitCode {
    let written = match make(args) {
        Ok(written) => written,
        Err(error) => return failed(&error),
    };
    let mut out = io::stdout().lock();
    for path in written {
        if let Err(error) = writeln!(out, "{}", path.display()) {
            return failed(&error);
        }
    }
    ExitCode::SUCCESS
}

/// Makes what is missing and gives the files it wrote. What is there stays as it is.
fn make(args: &DevCerts) -> Result<Vec<PathBuf>, CertsError> {
    let domain = TrustDomain::new(&args.domain)?;
    let links = args.links.iter().map(|name| LinkName::new(name)).collect::<Result<Vec<_>, _>>()?;
    if let Some(link) = links.iter().find(|link| [CA, GATEWAY].contains(&link.as_str())) {
        return Err(CertsError::Reserved(link.to_string()));
    }
    fs::create_dir_all(&args.folder).map_err(|source| CertsError::File { path: args.folder.clone(), source })?;
    let mut folder = Folder { path: &args.folder, written: Vec::new() };
    let issuer = folder.issuer()?;
    let names = LOCAL.into_iter().chain(args.gateway_names.iter().map(String::as_str)).map(str::to_owned);
    folder.issue(GATEWAY, gateway(names.collect())?, &issuer)?;
    for link in &links {
        folder.issue(link.as_str(), of_link(link, &domain)?, &issuer)?;
    }
    Ok(folder.written)
}

fn gateway(names: Vec<String>) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named("tombolo gateway");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn of_link(link: &LinkName, domain: &TrustDomain) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(link.as_str());
    params.subject_alt_names = vec![SanType::URI(domain.link_uri(link).try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn authority() -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = named(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

struct Folder<'a> {
    path: &'a Path,
    written: Vec<PathBuf>,
}

impl Folder<'_> {
    /// The issuer of this folder, made where there is none.
    fn issuer(&mut self) -> Result<Issuer<'static, KeyPair>, CertsError> {
        let (certificate, key_file) = (self.file(CA, "pem"), self.file(CA, "key"));
        let params = authority()?;
        if certificate.exists() {
            let pem = match fs::read_to_string(&key_file) {
                Ok(pem) => pem,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CertsError::NoKey(certificate)),
                Err(source) => return Err(CertsError::File { path: key_file, source }),
            };
            let key = KeyPair::from_pem(&pem).map_err(|source| CertsError::Key { path: key_file, source })?;
            return Ok(Issuer::new(params, key));
        }
        let key = KeyPair::generate()?;
        let signed = params.self_signed(&key)?;
        self.write(key_file, &key.serialize_pem(), 0o600)?;
        self.write(certificate, &signed.pem(), 0o644)?;
        Ok(Issuer::new(params, key))
    }

    /// Issues a certificate, unless it is there already.
    fn issue(
        &mut self,
        name: &str,
        mut params: CertificateParams,
        issuer: &Issuer<'static, KeyPair>,
    ) -> Result<(), CertsError> {
        let (certificate, key_file) = (self.file(name, "pem"), self.file(name, "key"));
        if certificate.exists() {
            return Ok(());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let signed = params.signed_by(&key, issuer)?;
        self.write(key_file, &key.serialize_pem(), 0o600)?;
        self.write(certificate, &signed.pem(), 0o644)
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.path.join(format!("{name}.{kind}"))
    }

    /// Writes a file that must not be there yet.
    fn write(&mut self, path: PathBuf, text: &str, mode: u32) -> Result<(), CertsError> {
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => {
                self.written.push(path);
                Ok(())
            }
            Err(source) => Err(CertsError::File { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::settings::TlsSettings;

    fn args(folder: &Path, links: &[&str]) -> DevCerts {
        DevCerts {
            folder: folder.to_owned(),
            links: links.iter().map(|&link| link.to_owned()).collect(),
            domain: "example.net".to_owned(),
            gateway_names: vec!["gw.example.net".to_owned()],
        }
    }

    fn names(written: &[PathBuf]) -> Vec<&str> {
        written.iter().filter_map(|path| path.file_name()?.to_str()).collect()
    }

    #[test]
    fn makes_a_folder_that_the_gateway_takes() {
        let folder = tempfile::tempdir().unwrap();
        let written = make(&args(folder.path(), &["ship-17"])).unwrap();
        let all = ["ca.key", "ca.pem", "gateway.key", "gateway.pem", "ship-17.key", "ship-17.pem"];
        assert_eq!(names(&written), all);
        for key in written.iter().filter(|path| path.extension().is_some_and(|kind| kind == "key")) {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let file = |name: &str| folder.path().join(name);
        let domain = TrustDomain::new("example.net").unwrap();
        let tls = TlsSettings {
            certificate: file("gateway.pem"),
            key: file("gateway.key"),
            client_ca: file("ca.pem"),
            domain: domain.clone(),
        };
        assert!(crate::listener::tls_config(&tls).is_ok());
        let leaf = tombolo_service::tls::cert_chain(&file("ship-17.pem")).unwrap();
        let link = crate::identity::link_of(&leaf[0], &domain).unwrap();
        assert_eq!(link.as_str(), "ship-17");
    }

    #[test]
    fn adds_links_and_leaves_the_rest_alone() {
        let folder = tempfile::tempdir().unwrap();
        make(&args(folder.path(), &["a"])).unwrap();
        let before = fs::read(folder.path().join("ca.pem")).unwrap();
        assert_eq!(names(&make(&args(folder.path(), &["a", "b"])).unwrap()), ["b.key", "b.pem"]);
        assert_eq!(fs::read(folder.path().join("ca.pem")).unwrap(), before);
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        assert!(matches!(make(&args(folder.path(), &["c"])), Err(CertsError::NoKey(_))));
    }

    #[test]
    fn names_are_checked_first() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(make(&args(folder.path(), &["a/b"])), Err(CertsError::Link(_))));
        assert!(matches!(make(&args(folder.path(), &["ca"])), Err(CertsError::Reserved(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
