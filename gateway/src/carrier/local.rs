//! A connection within the process: the session's end and the far end, joined by the same bounded queues that stand behind
//! QUIC.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tombolo_proto::frame::Frame;
use tombolo_proto::wire::{CloseCode, CloudMessage, ControlDecoder, EdgeMessage, WireError};

use super::{CONTROL_QUEUE, Carrier, CarrierError, CarrierLimits, FRAME_QUEUE, Streams};

/// Why the session closed the connection.
pub(crate) type Closed = (CloseCode, String);

/// The session's end.
#[derive(Debug, Clone)]
pub(crate) struct Near {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    streams: Mutex<Option<Streams>>,
    closed: watch::Sender<Option<Closed>>,
    far_gone: CancellationToken,
}

/// The other end. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct FarEnd {
    messages: mpsc::Sender<Result<EdgeMessage, CarrierError>>,
    frames: mpsc::Sender<Result<Frame, CarrierError>>,
    control: mpsc::Receiver<Bytes>,
    decoder: ControlDecoder,
    closed: watch::Receiver<Option<Closed>>,
    _gone: DropGuard,
}

/// What the far end hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(CloudMessage),
    /// The session is over.
    Closed(Closed),
}

/// A connection.
pub(crate) fn pair() -> (Carrier, FarEnd) {
    let (messages, near_messages) = mpsc::channel(CONTROL_QUEUE);
    let (frames, near_frames) = mpsc::channel(FRAME_QUEUE);
    let (near_control, control) = mpsc::channel(CONTROL_QUEUE);
    let (closed_sender, closed) = watch::channel(None);
    let far_gone = CancellationToken::new();
    let streams = Streams { messages: near_messages, frames: near_frames, control: near_control };
    let shared = Shared { streams: Mutex::new(Some(streams)), closed: closed_sender, far_gone: far_gone.clone() };
    let decoder = ControlDecoder::default();
    let far = FarEnd { messages, frames, control, decoder, closed, _gone: far_gone.drop_guard() };
    (Carrier::Local(Near { shared: Arc::new(shared) }), far)
}

impl Near {
    pub(super) fn open(&self, limits: CarrierLimits) -> Result<Streams, CarrierError> {
        let streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        streams.ok_or(CarrierError::NoControl(limits.open_deadline))
    }

    pub(super) async fn closed(&self) -> String {
        self.shared.far_gone.cancelled().await;
        "the other end is gone".to_owned()
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        self.shared.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| (code, reason.to_owned()));
            first
        });
    }
}

impl FarEnd {
    /// Sends a control message; the session always takes it, unless it is over, which [`FarEnd::receive`] tells.
    pub(crate) async fn send(&self, message: EdgeMessage) {
        drop(self.messages.send(Ok(message)).await);
    }

    /// A place for a frame, once the session has taken the one before. The queue outlives this borrow.
    pub(crate) fn frames(&self) -> mpsc::Sender<Result<Frame, CarrierError>> {
        self.frames.clone()
    }

    /// The next message, or why there is none any more. Loses nothing when it is dropped.
    pub(crate) async fn receive(&mut self) -> Result<Heard, WireError> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Heard::Message(message));
            }
            tokio::select! {
                // What was said before the end is heard first.
                biased;
                Some(bytes) = self.control.recv() => self.decoder.push(&bytes),
                Ok(closed) = self.closed.wait_for(Option::is_some) => {
                    let closed = closed.clone();
                    return Ok(Heard::Closed(closed.unwrap_or_else(gone)));
                }
                else => return Ok(Heard::Closed(gone())),
            }
        }
    }
}

fn gone() -> Closed {
    (CloseCode::Unavailable, "the session ended without a word".to_owned())
}
