//! PEM files are read as they are, and each refusal names the file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use super::*;

struct Files {
    _folder: TempDir,
    cert: PathBuf,
    key: PathBuf,
    both: PathBuf,
    text: PathBuf,
}

fn files() -> Files {
    let folder = TempDir::new().unwrap();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (cert, key) = (cert.pem(), signing_key.serialize_pem());
    Files {
        cert: write("cert.pem", &cert),
        key: write("key.pem", &key),
        both: write("both.pem", &format!("{cert}{key}{cert}")),
        text: write("text.pem", "hello\n"),
        _folder: folder,
    }
}

#[test]
fn reads_chain_key_and_roots() {
    let files = files();
    assert_eq!(cert_chain(&files.cert).unwrap().len(), 1);
    assert_eq!(cert_chain(&files.both).unwrap().len(), 2);
    assert_eq!(roots(&files.cert).unwrap().len(), 1);
    assert_eq!(private_key(&files.key).unwrap(), private_key(&files.both).unwrap());
}

#[test]
fn says_which_file_lacks_what() {
    let files = files();
    let text = cert_chain(&files.key).unwrap_err().to_string();
    assert!(text.ends_with("key.pem: holds no certificate"), "{text}");
    let text = private_key(&files.cert).unwrap_err().to_string();
    assert!(text.ends_with("cert.pem: holds no private key"), "{text}");
    let text = roots(&files.text).unwrap_err().to_string();
    assert!(text.ends_with("text.pem: holds no certificate"), "{text}");
    let text = cert_chain(Path::new("/nowhere/cert.pem")).unwrap_err().to_string();
    assert!(text.starts_with("/nowhere/cert.pem: cannot be read: "), "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn says_which_file_is_damaged() {
    let files = files();
    fs::write(&files.text, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
    let text = cert_chain(&files.text).unwrap_err().to_string();
    assert!(text.contains("text.pem: cannot be read"), "{text}");
    fs::write(&files.text, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let text = roots(&files.text).unwrap_err().to_string();
    assert!(text.contains("text.pem: certificate 0 is no trust anchor"), "{text}");
}

#[test]
fn becomes_the_error_of_the_settings_key() {
    let files = files();
    let error = private_key(&files.text).unwrap_err().at_key("link.key");
    assert_eq!(error.key(), Some("link.key"));
    let text = error.to_string();
    assert!(text.contains("holds no private key; allowed: a PEM file with an unencrypted"), "{text}");
}

#[test]
fn notices_a_key_that_others_may_read() {
    let files = files();
    for (mode, noticed) in [(0o600, None), (0o400, None), (0o640, Some(0o640)), (0o604, Some(0o604))] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(open_to_others(&files.key), noticed, "{mode:o}");
    }
}
