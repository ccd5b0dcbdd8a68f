//! The one task that owns a connection's socket: writes queued frames, matches answers to requests, watches deadlines.

use std::collections::VecDeque;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::Fate;
use crate::cluster::WriteGuard;
use crate::error::{Api, ConnectionError, ConnectionErrorKind, KafkaErrorKind, WriteRefused};
use crate::wire::FRAME_HEAD_BYTES;

const READ_BYTES: usize = 16 << 10;
/// Shortest answer: its correlation id.
const MIN_ANSWER_BYTES: usize = 4;

/// A request on its way.
pub(super) struct Outgoing {
    pub(super) frame: Bytes,
    pub(super) guarded: bool,
    pub(super) api: Api,
    pub(super) correlation: i32,
    /// What the caller set as its deadline, for the error.
    pub(super) after: Duration,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Bytes, KafkaErrorKind>>,
    /// Free again when the answer is there.
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Outgoing {
    fn fail(self, kind: KafkaErrorKind) {
        // Nobody may be waiting any more.
        let _unread = self.reply.send(Err(kind));
    }
}

/// A frame that is being written.
struct Writing {
    rest: Bytes,
    whole: usize,
    guarded: bool,
}

/// What a step of writing did.
enum Wrote {
    Some,
    All,
    /// The guard refused before the first byte.
    Refused(WriteRefused),
}

pub(super) struct Driver {
    queue: mpsc::Receiver<Outgoing>,
    guard: Option<WriteGuard>,
    max_answer_bytes: usize,
    /// Requests written or being written, oldest first; the newest is the one in `writing`.
    waiting: VecDeque<Outgoing>,
    writing: Option<Writing>,
    inbox: BytesMut,
}

/// What ended a wait.
enum Event {
    Request(Outgoing),
    AllHandlesGone,
    Wrote(Wrote),
    Read(usize),
    Late,
}

impl Driver {
    pub(super) fn new(queue: mpsc::Receiver<Outgoing>, guard: Option<WriteGuard>, max_answer_bytes: usize) -> Self {
        Self { queue, guard, max_answer_bytes, waiting: VecDeque::new(), writing: None, inbox: BytesMut::new() }
    }

    /// Runs until the first error, then answers everybody with it.
    pub(super) async fn run(mut self, stream: impl AsyncRead + AsyncWrite + Send + Unpin, fate: &Fate) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let kind = loop {
            // An answer that one of the callers could not read ends the connection too.
            let step = tokio::select! {
                event = self.select(&mut reader, &mut writer) => event.and_then(|event| self.apply(event)),
                () = fate.dead.cancelled() => Err(ConnectionErrorKind::Dropped),
            };
            if let Err(kind) = step {
                break kind;
            }
        };
        let cause = fate.seal(kind);
        self.queue.close();
        for request in self.waiting.drain(..) {
            request.fail(failed(&cause, true));
        }
        while let Ok(request) = self.queue.try_recv() {
            request.fail(failed(&cause, false));
        }
    }

    async fn select(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Event, ConnectionErrorKind> {
        let deadline = self.waiting.iter().map(|request| request.deadline).min();
        let (idle, timed) = (self.writing.is_none(), deadline.is_some());
        self.make_room();
        tokio::select! {
            request = self.queue.recv(), if idle => Ok(request.map_or(Event::AllHandlesGone, Event::Request)),
            wrote = write_some(writer, self.writing.as_mut(), self.guard.as_ref()), if !idle => Ok(Event::Wrote(wrote?)),
            read = reader.read_buf(&mut self.inbox) => read.map(Event::Read).map_err(broken),
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if timed => Ok(Event::Late),
        }
    }

    /// Room for the next read. In the middle of an answer there is exactly as much as it needs: growing would copy it.
    fn make_room(&mut self) {
        let room = self.inbox.capacity() - self.inbox.len();
        if room == 0 || (room < READ_BYTES / 4 && self.inbox.len() < FRAME_HEAD_BYTES) {
            self.inbox.reserve(READ_BYTES);
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), ConnectionErrorKind> {
        match event {
            Event::Request(mut request) => {
                let rest = mem::take(&mut request.frame);
                self.writing = Some(Writing { whole: rest.len(), rest, guarded: request.guarded });
                self.waiting.push_back(request);
                Ok(())
            }
            Event::AllHandlesGone => Err(ConnectionErrorKind::Dropped),
            Event::Wrote(Wrote::Some) => Ok(()),
            Event::Wrote(Wrote::All) => {
                self.writing = None;
                Ok(())
            }
            Event::Wrote(Wrote::Refused(refused)) => {
                self.writing = None;
                if let Some(request) = self.waiting.pop_back() {
                    request.fail(refused.into());
                }
                Ok(())
            }
            Event::Read(0) => Err(ConnectionErrorKind::Closed),
            Event::Read(_) => self.deliver(),
            Event::Late => Err(self.late()),
        }
    }

    /// Hands out all whole answers in the inbox and makes room for the next.
    fn deliver(&mut self) -> Result<(), ConnectionErrorKind> {
        while let Some(head) = self.inbox.first_chunk::<FRAME_HEAD_BYTES>() {
            let announced = i32::from_be_bytes(*head);
            let size = usize::try_from(announced)
                .ok()
                .filter(|size| (MIN_ANSWER_BYTES..=self.max_answer_bytes).contains(size))
                .ok_or(ConnectionErrorKind::AnswerSize { size: announced, limit: self.max_answer_bytes })?;
            if let Some(missing) = (FRAME_HEAD_BYTES + size).checked_sub(self.inbox.len()).filter(|bytes| *bytes > 0) {
                self.inbox.reserve(missing);
                break;
            }
            self.inbox.advance(FRAME_HEAD_BYTES);
            let answer = self.inbox.split_to(size).freeze();
            let found = i32::from_be_bytes(*answer.first_chunk().expect("an answer is at least as long as this"));
            let expected = self.due().map(|request| request.correlation);
            match self.waiting.pop_front_if(|_| expected == Some(found)) {
                Some(request) => {
                    // A dropped future wants no answer.
                    let _unread = request.reply.send(Ok(answer));
                }
                None => return Err(ConnectionErrorKind::Correlation { expected, found }),
            }
        }
        Ok(())
    }

    /// The oldest request, once all of it is written.
    fn due(&self) -> Option<&Outgoing> {
        let half_written = self.writing.as_ref().is_some_and(|writing| !writing.rest.is_empty());
        self.waiting.front().filter(|_| self.waiting.len() > usize::from(half_written))
    }

    fn late(&self) -> ConnectionErrorKind {
        self.waiting.iter().min_by_key(|request| request.deadline).map_or(ConnectionErrorKind::Dropped, |request| {
            ConnectionErrorKind::Timeout { api: request.api, after: request.after }
        })
    }
}

/// With TLS 1.3 a broker refuses a client's certificate only after the handshake.
fn broken(error: io::Error) -> ConnectionErrorKind {
    let by_tls = error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>);
    if by_tls { ConnectionErrorKind::Tls(error) } else { ConnectionErrorKind::Io(error) }
}

fn failed(cause: &Arc<ConnectionError>, sent: bool) -> KafkaErrorKind {
    KafkaErrorKind::Connection { cause: Arc::clone(cause), sent }
}

/// One write to the socket, or the flush after the last. The guard is asked immediately before each of them: a process
/// that slept in the middle of a frame must not finish it.
async fn write_some(
    writer: &mut (impl AsyncWrite + Unpin),
    writing: Option<&mut Writing>,
    guard: Option<&WriteGuard>,
) -> Result<Wrote, ConnectionErrorKind> {
    let Some(writing) = writing else { return Ok(Wrote::All) };
    let guard = guard.filter(|_| writing.guarded);
    poll_fn(|cx| {
        if let Some(Err(refused)) = guard.map(|guard| guard()) {
            return Poll::Ready(if writing.rest.len() == writing.whole {
                Ok(Wrote::Refused(refused))
            } else {
                Err(ConnectionErrorKind::WriteRefused(refused))
            });
        }
        if !writing.rest.is_empty() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &writing.rest)) {
                Ok(0) => return Poll::Ready(Err(ConnectionErrorKind::Io(io::ErrorKind::WriteZero.into()))),
                Ok(bytes) => writing.rest.advance(bytes),
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
        }
        if !writing.rest.is_empty() {
            return Poll::Ready(Ok(Wrote::Some));
        }
        Poll::Ready(ready!(Pin::new(&mut *writer).poll_flush(cx)).map(|()| Wrote::All).map_err(broken))
    })
    .await
}
