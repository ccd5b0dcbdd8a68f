//! One connection's streams: control messages both ways, frames from the agent. With `listener.rs` the only place that
//! knows QUIC. An import's connection is within the process ([`local`]); the session cannot tell.
//!
//! Must never: hold more than the frame being read and the one waiting for the session; allocate by a length that was
//! not compared with a limit.

pub(crate) mod local;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::time::{error::Elapsed, timeout};
use tombolo_proto::frame::{Frame, FrameError, FrameHeader, FrameLimits, HEADER_BYTES};
use tombolo_proto::wire::{CloseCode, ControlDecoder, EdgeMessage, WireError};
use tombolo_service::tasks::Tasks;

use crate::metrics;

/// Control messages waiting for the session, and for the agent.
const CONTROL_QUEUE: usize = 16;
/// Frames waiting for the session, besides the one being read.
const FRAME_QUEUE: usize = 1;
/// Bytes taken from the control stream at a time.
const READ_BYTES: usize = 64 << 10;
/// Longest reason that fits the closing frame in the smallest packet.
const MAX_REASON_BYTES: usize = 900;

/// Why the streams of a connection are of no more use. Where the connection still stands, it is closed for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarrierError {
    /// The connection is over.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The agent never opened the control stream.
    #[error("no control stream within {0:?}")]
    NoControl(Duration),
    /// A stream ended where it must not.
    #[error("{stream} stream ended: {source}")]
    Read {
        stream: &'static str,
        #[source]
        source: ReadError,
    },
    /// The agent closed the control stream, which lives as long as the session.
    #[error("the control stream was finished")]
    Finished,
    /// Bytes that are no control message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A stream ended in the middle of a frame.
    #[error("a frame was cut off after {0} bytes")]
    CutOff(usize),
    /// The rest of a frame did not come.
    #[error("a frame stalled for {0:?}")]
    Stalled(Duration),
}

impl CarrierError {
    /// Whether the agent broke the protocol; otherwise the connection is gone.
    pub(crate) fn is_breach(&self) -> bool {
        match self {
            Self::Connection(_) => false,
            Self::Read { source, .. } => !matches!(source, ReadError::ConnectionLost(_)),
            Self::NoControl(_)
            | Self::Finished
            | Self::Wire(_)
            | Self::Frame(_)
            | Self::CutOff(_)
            | Self::Stalled(_) => true,
        }
    }
}

/// What bounds the reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CarrierLimits {
    /// Largest frame body, as sent and decompressed.
    pub(crate) max_frame: usize,
    /// For the agent to open the control stream.
    pub(crate) open_deadline: Duration,
    /// For the rest of a frame to come, once it began.
    pub(crate) frame_deadline: Duration,
}

/// An open connection.
#[derive(Debug, Clone)]
pub(crate) enum Carrier {
    /// To an agent.
    Quic(Connection),
    /// To a task of this process.
    Local(local::Near),
}

/// The session's ends of the streams. A receiver that yields an error, or nothing more, is done.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) messages: mpsc::Receiver<Result<EdgeMessage, CarrierError>>,
    pub(crate) frames: mpsc::Receiver<Result<Frame, CarrierError>>,
    /// Encoded control messages.
    pub(crate) control: mpsc::Sender<Bytes>,
}

impl Carrier {
    /// Address of the agent; it may change while the session goes on.
    pub(crate) fn remote(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Local(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    pub(crate) fn rtt(&self) -> Duration {
        match self {
            Self::Quic(connection) => connection.rtt(),
            Self::Local(_) => Duration::ZERO,
        }
    }

    /// Waits for the end of the connection and says why it ended.
    pub(crate) async fn closed(&self) -> String {
        let end = match self {
            Self::Quic(connection) => connection.closed().await,
            Self::Local(near) => return near.closed().await,
        };
        if let ConnectionError::ApplicationClosed(close) = &end {
            return format!("the agent closed: {}", String::from_utf8_lossy(&close.reason));
        }
        end.to_string()
    }

    /// Ends the connection.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        match self {
            Self::Quic(connection) => close(connection, code, reason),
            Self::Local(near) => near.close(code, reason),
        }
    }

    /// Waits for the agent's control stream and starts the readers and the writer.
    pub(crate) async fn open(&self, limits: CarrierLimits, tasks: &Tasks) -> Result<Streams, CarrierError> {
        let connection = match self {
            Self::Quic(connection) => connection,
            Self::Local(near) => return near.open(limits),
        };
        let (send, receive) = match timeout(limits.open_deadline, connection.accept_bi()).await {
            Ok(opened) => opened?,
            Err(Elapsed { .. }) => return Err(CarrierError::NoControl(limits.open_deadline)),
        };
        let (message_sender, messages) = mpsc::channel(CONTROL_QUEUE);
        let (frame_sender, frames) = mpsc::channel(FRAME_QUEUE);
        let (control, outgoing) = mpsc::channel(CONTROL_QUEUE);
        // They end with the connection or the session; the session sees their channels end.
        drop(tasks.spawn_child("control reader", read_control(receive, message_sender)));
        drop(tasks.spawn_child("control writer", write_control(send, outgoing)));
        let connection = connection.clone();
        drop(tasks.spawn_child("frame reader", read_frames(connection, limits, frame_sender)));
        Ok(Streams { messages, frames, control })
    }
}

/// Ends a connection, also one that never became a session.
pub(crate) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    let end = (0..=reason.len().min(MAX_REASON_BYTES)).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    connection.close(VarInt::from_u32(code.number()), reason.get(..end).unwrap_or_default().as_bytes());
}

async fn read_control(mut stream: RecvStream, sender: mpsc::Sender<Result<EdgeMessage, CarrierError>>) {
    let mut decoder = ControlDecoder::default();
    let error = loop {
        match decoder.next_message() {
            Ok(Some(message)) => {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => break error.into(),
        }
        match stream.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => break CarrierError::Finished,
            Err(source) => break CarrierError::Read { stream: "control", source },
        }
    };
    // The session is gone where nobody hears it.
    drop(sender.send(Err(error)).await);
}

/// An agent that does not read is found by the session: its queue of messages grows over its bound.
async fn write_control(mut stream: SendStream, mut outgoing: mpsc::Receiver<Bytes>) {
    while let Some(message) = outgoing.recv().await {
        if let Err(error) = stream.write_chunk(message).await {
            tracing::debug!(%error, "control stream cannot be written");
            return;
        }
    }
}

async fn read_frames(connection: Connection, limits: CarrierLimits, sender: mpsc::Sender<Result<Frame, CarrierError>>) {
    let error = loop {
        let mut stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(error) => break error.into(),
        };
        // One data stream after another: what is in a second one waits in the transport, within its window.
        loop {
            match read_frame(&mut stream, limits).await {
                Ok(Some(frame)) => {
                    if sender.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    drop(sender.send(Err(error)).await);
                    return;
                }
            }
        }
    };
    drop(sender.send(Err(error)).await);
}

/// The next frame; `None` where the stream ends between two.
async fn read_frame(stream: &mut RecvStream, limits: CarrierLimits) -> Result<Option<Frame>, CarrierError> {
    let mut header = [0; HEADER_BYTES];
    // A quiet topic leaves the stream quiet: only what has begun has a deadline.
    let Some(first) =
        stream.read_chunk(1, true).await.map_err(|source| CarrierError::Read { stream: "data", source })?
    else {
        return Ok(None);
    };
    let rest = async {
        let (begin, end) = header.split_at_mut(first.bytes.len());
        begin.copy_from_slice(&first.bytes);
        stream.read_exact(end).await?;
        Ok::<(), ReadExactError>(())
    };
    within(limits, rest).await?;
    let header = FrameHeader::decode(&header, FrameLimits { max_bytes: limits.max_frame })?;
    let mut body = vec![0; header.body_bytes];
    within(limits, stream.read_exact(&mut body)).await?;
    metrics::received_bytes(HEADER_BYTES + body.len());
    Ok(Some(header.decode_body(body.into())?))
}

async fn within(
    limits: CarrierLimits,
    read: impl Future<Output = Result<(), ReadExactError>>,
) -> Result<(), CarrierError> {
    match timeout(limits.frame_deadline, read).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ReadExactError::FinishedEarly(read))) => Err(CarrierError::CutOff(read)),
        Ok(Err(ReadExactError::ReadError(source))) => Err(CarrierError::Read { stream: "data", source }),
        Err(Elapsed { .. }) => Err(CarrierError::Stalled(limits.frame_deadline)),
    }
}
