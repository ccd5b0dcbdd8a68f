//! Writes what the journal holds into a folder that is carried to the cloud by hand, signed by the link's key.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use tombolo_proto::export::{
    CERTIFICATE_FILE, Chunk, ExportError, ExportWriter, MANIFEST_FILE, Manifest, ManifestSignature, Origin,
    SIGNATURE_FILE, data_file, signed_bytes,
};
use tombolo_proto::id::{LinkName, NameError, Offset, Partition, TopicName};
use tombolo_service::progress::Progress;
use tombolo_service::signature::{self, Sha256, SignatureError};
use tombolo_service::tls::{self, TlsFileError};

use crate::journal::{Journal, JournalError};
use crate::keeper::{KeeperError, open_journal, open_state};
use crate::settings::Settings;

/// Bytes of frames read from the journal at a time.
const READ_BYTES: usize = 4 << 20;

/// Why no export was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Format(#[from] ExportError),
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the link's certificate {} names no link: its URI name must be spiffe://DOMAIN/link/NAME", path.display())]
    Name { path: PathBuf },
    #[error(transparent)]
    LinkName(#[from] NameError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not empty: an export gets a folder of its own", path.display())]
    NotEmpty { path: PathBuf },
    #[error("the journal has lost {topic} partition {partition} at offset {offset}: run `journal verify`")]
    Hole { topic: TopicName, partition: Partition, offset: Offset },
    #[error("the journal holds nothing that could be exported")]
    Empty,
}

/// Writes an export into `folder`, which must be empty or not exist.
pub(crate) fn export(settings: &Settings, folder: &Path) -> Result<Manifest, Failure> {
    let (certificate, key) = settings.link.identity();
    let chain = tls::cert_chain(certificate)?;
    let key = tls::private_key(key)?;
    let link = link_name(chain.first().map_or(&[][..], |leaf| leaf), certificate)?;
    let mut state = open_state(&settings.journal)?;
    let checkpoint = state.load().map_err(KeeperError::from)?;
    let (mut journal, lost) = open_journal(&settings.journal)?;
    crate::keeper::log_lost(&lost);
    let ranges = journal.ranges();
    if ranges.is_empty() {
        return Err(Failure::Empty);
    }
    make_folder(folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut writer = ExportWriter::new(Origin {
        link,
        created_unix_seconds: now,
        software: concat!("tombolo-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
        source_cluster_id: state.cluster_id().to_owned(),
    });
    let mut progress = Progress::new("exporting", ranges.iter().map(|range| range.bytes).sum());
    let mut files = Files { folder, open: None, hashes: Vec::new() };
    let mut topic = None;
    for range in &ranges {
        if topic.replace(&range.topic) != Some(&range.topic) {
            let known = checkpoint.mirrors.iter().find(|mirror| mirror.topic == range.topic);
            let of_topic = ranges.iter().filter(|other| other.topic == range.topic);
            let held = of_topic.map(|other| other.partition + 1).max().unwrap_or(1);
            let partitions = known.map_or(0, |mirror| mirror.partitions).max(held);
            let configs = known.map_or_else(Vec::new, |mirror| mirror.configs.clone());
            writer.topic(&range.topic, known.and_then(|mirror| mirror.topic_id), partitions, configs);
        }
        let mut offset = range.first;
        while offset < range.next {
            let frames = journal.read(&range.topic, range.partition, offset, READ_BYTES)?;
            if frames.is_empty() {
                let (topic, partition) = (range.topic.clone(), range.partition);
                return Err(Failure::Hole { topic, partition, offset });
            }
            for packed in &frames {
                let chunk = writer.frame(range.partition, packed)?;
                files.write(&chunk)?;
                progress.add(packed.body_bytes() as u64);
                offset = packed.next_offset;
            }
        }
    }
    let manifest = writer.finish(&files.finish()?)?;
    progress.finish();
    let bytes = manifest.encode_to_vec();
    let signed = signature::sign(&key, &signed_bytes(&bytes))?;
    let signature = ManifestSignature { scheme: signed.scheme.into(), signature: signed.bytes };
    let pem = fs::read(certificate).map_err(|source| Failure::File { path: certificate.to_owned(), source })?;
    keep(&folder.join(CERTIFICATE_FILE), &pem)?;
    keep(&folder.join(SIGNATURE_FILE), &signature.encode_to_vec())?;
    // Last: an export without it was not finished.
    keep(&folder.join(MANIFEST_FILE), &bytes)?;
    let opened = File::open(folder).and_then(|folder| folder.sync_all());
    opened.map_err(|source| Failure::File { path: folder.to_owned(), source })?;
    Ok(manifest)
}

fn link_name(leaf: &[u8], path: &Path) -> Result<LinkName, Failure> {
    let uris = tls::uri_names(leaf).unwrap_or_default();
    let name = uris.iter().find_map(|uri| uri.strip_prefix("spiffe://")?.split_once("/link/").map(|(_, name)| name));
    let name = name.ok_or_else(|| Failure::Name { path: path.to_owned() })?;
    Ok(LinkName::new(name)?)
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::File { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    if fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(Failure::NotEmpty { path: folder.to_owned() });
    }
    Ok(())
}

/// A whole file, durable.
fn keep(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| Failure::File { path: path.to_owned(), source })
}

/// The data files: one after the other, each hashed while it is written.
struct Files<'a> {
    folder: &'a Path,
    open: Option<(usize, BufWriter<File>, Sha256)>,
    hashes: Vec<[u8; 32]>,
}

impl Files<'_> {
    fn write(&mut self, chunk: &Chunk) -> Result<(), Failure> {
        if self.open.as_ref().is_none_or(|(number, ..)| *number != chunk.file) {
            self.close()?;
            let path = self.folder.join(data_file(chunk.file));
            let file = File::create_new(&path).map_err(|source| Failure::File { path, source })?;
            self.open = Some((chunk.file, BufWriter::new(file), Sha256::default()));
        }
        let Some((number, file, hash)) = &mut self.open else { return Ok(()) };
        for piece in &chunk.pieces {
            hash.update(piece);
            let path = || self.folder.join(data_file(*number));
            file.write_all(piece).map_err(|source| Failure::File { path: path(), source })?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some((number, mut file, hash)) = self.open.take() else { return Ok(()) };
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|source| Failure::File { path: self.folder.join(data_file(number)), source })?;
        self.hashes.push(hash.finish());
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<[u8; 32]>, Failure> {
        self.close()?;
        Ok(self.hashes)
    }
}
