//! The folder of an export: who made it, whether its bytes are those that were signed, and its frames.
//!
//! Must never: read more than a limit into memory; hand out a frame that does not stand where the signed manifest says.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;
use tombolo_proto::export::{
    self, CERTIFICATE_FILE, ExportError, ExportRange, MANIFEST_FILE, MAX_CERTIFICATE_BYTES, MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES, Manifest, ManifestSignature, SIGNATURE_FILE, check_frame,
};
use tombolo_proto::frame::{Frame, FrameHeader, FrameLimits, HEADER_BYTES};
use tombolo_proto::id::{LinkName, Offset};
use tombolo_service::signature::{self, Sha256, Signature, SignatureError, Validity};
use tombolo_service::tls::{self, TlsFileError};

use crate::identity::{self, IdentityError};
use crate::settings::TlsSettings;
use tombolo_service::progress::Progress;

/// Bytes hashed at a time.
const PIECE: usize = 1 << 20;
/// The last second of the year 9999, in seconds since 1970: beyond it no time can be shown.
const LATEST: u64 = 253_402_300_799;

/// Why a folder is no export of a link, or not the one that was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {bytes} bytes, allowed are {allowed}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, allowed: usize },
    #[error("{}: {source}", path.display())]
    Format {
        path: PathBuf,
        #[source]
        source: ExportError,
    },
    #[error("{}: malformed: {source}", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: prost::DecodeError,
    },
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    #[error("{}: {source}", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: SignatureError,
    },
    #[error("{}: {source}", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error(
        "{}: {source}: it, {SIGNATURE_FILE} or {CERTIFICATE_FILE} is damaged or was changed",
        path.display()
    )]
    Signature {
        path: PathBuf,
        #[source]
        source: SignatureError,
    },
    #[error("{}: it says that it is of link {manifest}, but the certificate is of link {certificate}", path.display())]
    Link { path: PathBuf, manifest: LinkName, certificate: LinkName },
    #[error("{}: {found} bytes, the manifest says {expected}: copy the export again", path.display())]
    Size { path: PathBuf, found: u64, expected: u64 },
    #[error("{}: its SHA-256 is not the manifest's: the file is damaged, copy the export again", path.display())]
    Hash { path: PathBuf },
    #[error("stopped while the files were checked; nothing was appended")]
    Stopped,
}

/// An export whose manifest is genuine.
#[derive(Debug)]
pub(crate) struct Export {
    folder: PathBuf,
    manifest: Manifest,
    link: LinkName,
    validity: Validity,
}

impl Export {
    /// Reads the manifest and checks whose it is. The data files are checked by [`Export::check_files`].
    pub(crate) fn open(folder: PathBuf, trusted: &TlsSettings, now: SystemTime) -> Result<Self, FolderError> {
        let path = |name: &str| folder.join(name);
        let (manifest_path, certificate_path) = (path(MANIFEST_FILE), path(CERTIFICATE_FILE));
        let manifest_bytes = read(&manifest_path, MAX_MANIFEST_BYTES)?;
        let signature_path = path(SIGNATURE_FILE);
        let signature = ManifestSignature::decode(&*read(&signature_path, MAX_SIGNATURE_BYTES)?)
            .map_err(|source| FolderError::Malformed { path: signature_path, source })?;
        // For its size only: the PEM reader takes a path.
        drop(read(&certificate_path, MAX_CERTIFICATE_BYTES)?);
        let chain = tls::cert_chain(&certificate_path)?;
        let issuers = tls::roots(&trusted.client_ca)?;
        let leaf = chain.first().ok_or_else(|| FolderError::Certificate {
            path: certificate_path.clone(),
            source: SignatureError::NoCertificate,
        })?;
        let scheme = u16::try_from(signature.scheme).unwrap_or(0);
        let signature = Signature { scheme, bytes: signature.signature };
        signature::verify(leaf, &export::signed_bytes(&manifest_bytes), &signature)
            .map_err(|source| FolderError::Signature { path: manifest_path.clone(), source })?;
        let format = |source| FolderError::Format { path: manifest_path.clone(), source };
        let manifest = Manifest::decode_checked(&manifest_bytes).map_err(format)?;
        let link = manifest.link_name().map_err(format)?;
        let validity = signature::verify_chain(&chain, issuers, now, created(&manifest))
            .map_err(|source| FolderError::Certificate { path: certificate_path.clone(), source })?;
        let certificate = identity::link_of(leaf, &trusted.domain)
            .map_err(|source| FolderError::Identity { path: certificate_path, source })?;
        if certificate != link {
            return Err(FolderError::Link { path: manifest_path, manifest: link, certificate });
        }
        Ok(Self { folder, manifest, link, validity })
    }

    pub(crate) fn link(&self) -> &LinkName {
        &self.link
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// When it was made, by the site's clock.
    pub(super) fn created(&self) -> SystemTime {
        created(&self.manifest)
    }

    /// Whether the certificate has expired since it signed.
    pub(super) fn has_expired(&self) -> bool {
        self.validity == Validity::Then
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.bytes).sum()
    }

    fn data_path(&self, number: usize) -> PathBuf {
        self.folder.join(export::data_file(number))
    }

    /// Compares every data file with its size and hash in the manifest.
    pub(super) async fn check_files(
        &self,
        progress: &mut Progress,
        stop: &CancellationToken,
    ) -> Result<(), FolderError> {
        let mut piece = vec![0; PIECE];
        for (number, expected) in self.manifest.files.iter().enumerate() {
            let path = self.data_path(number);
            let failed = |source| FolderError::File { path: path.clone(), source };
            let mut file = File::open(&path).await.map_err(failed)?;
            let found = file.metadata().await.map_err(failed)?.len();
            if found != expected.bytes {
                return Err(FolderError::Size { path, found, expected: expected.bytes });
            }
            let mut hash = Sha256::default();
            let mut left = expected.bytes;
            while left > 0 {
                if stop.is_cancelled() {
                    return Err(FolderError::Stopped);
                }
                let size = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let piece = piece.get_mut(..size).unwrap_or_default();
                file.read_exact(piece).await.map_err(failed)?;
                hash.update(piece);
                left -= size as u64;
                progress.add(size as u64);
            }
            if hash.finish() != *expected.sha256 {
                return Err(FolderError::Hash { path });
            }
        }
        progress.finish();
        Ok(())
    }
}

fn created(manifest: &Manifest) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(manifest.created_unix_seconds.min(LATEST))
}

/// A whole file of bounded size.
fn read(path: &Path, allowed: usize) -> Result<Vec<u8>, FolderError> {
    use std::io::Read;

    let failed = |source| FolderError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(allowed as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > allowed {
        return Err(FolderError::TooLarge { path: path.to_owned(), bytes: bytes.len() as u64, allowed });
    }
    Ok(bytes)
}

/// Walks the frames of one partition. Its calls are not to be dropped half-way.
#[derive(Debug)]
pub(super) struct Cursor {
    export: Arc<Export>,
    topic: u32,
    range: ExportRange,
    limits: FrameLimits,
    file: Option<File>,
    number: usize,
    at: u64,
    /// Where the partition goes on.
    next: Offset,
}

impl Cursor {
    /// Stands before the partition's first frame.
    pub(super) fn new(export: Arc<Export>, topic: u32, range: ExportRange, limits: FrameLimits) -> Self {
        let number = range.file as usize;
        Self { export, topic, range, limits, file: None, number, at: range.position, next: range.first_offset }
    }

    /// The next frame's header; `None` at the end of the partition. [`Cursor::skip`] or [`Cursor::body`] comes next.
    pub(super) async fn header(&mut self) -> Result<Option<FrameHeader>, FolderError> {
        if self.next >= self.range.next_offset {
            return Ok(None);
        }
        let size = self.export.manifest.files.get(self.number).map_or(0, |file| file.bytes);
        if self.at >= size {
            (self.file, self.number, self.at) = (None, self.number + 1, 0);
        }
        let mut bytes = [0; HEADER_BYTES];
        self.read(&mut bytes).await?;
        let checked = FrameHeader::decode(&bytes, self.limits).map_err(ExportError::from);
        let checked = checked.and_then(|header| {
            check_frame(&header, self.topic, &self.range, self.next)?;
            Ok(header)
        });
        checked.map(Some).map_err(|source| self.format(source))
    }

    /// Passes over a frame.
    pub(super) async fn skip(&mut self, header: &FrameHeader) -> Result<(), FolderError> {
        let forth = i64::try_from(header.body_bytes).unwrap_or(i64::MAX);
        if let Some(file) = &mut self.file
            && let Err(source) = file.seek(SeekFrom::Current(forth)).await
        {
            return Err(self.failed(source));
        }
        self.passed(header);
        Ok(())
    }

    /// Reads a frame.
    pub(super) async fn body(&mut self, header: &FrameHeader) -> Result<Frame, FolderError> {
        let mut body = vec![0; header.body_bytes];
        self.read(&mut body).await?;
        let frame = header.decode_body(body.into()).map_err(|source| self.format(source.into()))?;
        self.passed(header);
        Ok(frame)
    }

    fn passed(&mut self, header: &FrameHeader) {
        self.at += (HEADER_BYTES + header.body_bytes) as u64;
        self.next = header.next_offset;
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), FolderError> {
        let read = async {
            let file = if let Some(file) = &mut self.file {
                file
            } else {
                let mut file = File::open(self.export.data_path(self.number)).await?;
                file.seek(SeekFrom::Start(self.at)).await?;
                self.file.insert(file)
            };
            file.read_exact(bytes).await.map(drop)
        };
        read.await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> FolderError {
        FolderError::File { path: self.export.data_path(self.number), source }
    }

    fn format(&self, source: ExportError) -> FolderError {
        FolderError::Format { path: self.export.data_path(self.number), source }
    }
}
