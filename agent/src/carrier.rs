//! One connection's streams: control messages both ways, frames to the gateway. All that is QUIC about a session.
//!
//! One task runs it all; [`LinkEvent`]s go to the owner of the site, who answers through [`LinkSender`]. Must never: hold
//! more than one frame, or decide which frame is next.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tombolo_proto::edge::Outgoing;
use tombolo_proto::failure::cut;
use tombolo_proto::wire::{Close, CloseCode, CloudBody, CloudMessage, ControlDecoder, EdgeMessage, encode};

use crate::dial::LinkError;

/// For the gateway to let the two streams be opened.
const OPEN_DEADLINE: Duration = Duration::from_secs(15);
/// For the last control messages to arrive before the connection is closed.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
const STATS_EVERY: Duration = Duration::from_secs(1);
/// Control messages on their way to the writer.
const CONTROL_QUEUE: usize = 16;
/// Bytes taken from the control stream at a time.
const READ_BYTES: usize = 64 << 10;

/// What happens on the link, in order. Between [`LinkEvent::Up`] and [`LinkEvent::Down`] all of it is one connection's.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A connection stands.
    Up(LinkSender),
    /// The writer takes a frame.
    WriterFree,
    /// A control message.
    Message(CloudMessage),
    /// The control stream makes no sense.
    Breach { reason: String },
    /// How the path does, once a second.
    Stats(LinkStats),
    /// There is no connection, or no more.
    Down { reason: String },
}

/// What the owner of the site sends over one connection.
#[derive(Debug)]
pub(crate) struct LinkSender {
    /// `host:port` of the gateway.
    pub(crate) gateway: String,
    /// Messages in order; the close is the last.
    pub(crate) control: mpsc::Sender<Control>,
    /// One frame for each [`LinkEvent::WriterFree`].
    pub(crate) frames: mpsc::Sender<Outgoing>,
}

#[derive(Debug)]
pub(crate) enum Control {
    Message(EdgeMessage),
    Close { code: CloseCode, reason: String },
}

/// How the path does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LinkStats {
    pub(crate) rtt: Duration,
    pub(crate) lost_packets: u64,
    pub(crate) sent_packets: u64,
    /// Bytes of UDP payload sent.
    pub(crate) wire_bytes: u64,
}

/// How one of the streams ended.
enum End {
    Connection(ConnectionError),
    /// The connection stands, but the stream is of no more use.
    Stream(String),
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Connection(error),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Stream(format!("control stream: {error}")),
        }
    }
}

impl From<WriteError> for End {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Stream(format!("stream to the gateway: {error}"))
            }
        }
    }
}

/// A connection and what became of its session.
pub(crate) struct Carrier {
    gateway: String,
    connection: Connection,
    events: mpsc::Sender<LinkEvent>,
    welcomed: bool,
}

impl Carrier {
    pub(crate) fn new(gateway: String, connection: Connection, events: mpsc::Sender<LinkEvent>) -> Self {
        Self { gateway, connection, events, welcomed: false }
    }

    /// Whether the session got its Welcome.
    pub(crate) fn welcomed(&self) -> bool {
        self.welcomed
    }

    /// Runs the session to its end. [`LinkEvent::Down`] is left to the caller.
    pub(crate) async fn run(&mut self) -> LinkError {
        let mut told = None;
        let end = self.session(&mut told).await;
        let error = match end {
            End::Connection(error) => LinkError::of(&self.gateway, &error),
            End::Stream(reason) => {
                close(&self.connection, CloseCode::Protocol, &reason);
                LinkError::Lost { gateway: self.gateway.clone(), reason }
            }
        };
        match told {
            // Its word says more than the end of the connection that follows it.
            Some(Close { code, reason }) => LinkError::Closed {
                gateway: self.gateway.clone(),
                code: CloseCode::from_number(code.into()),
                reason: cut(reason),
            },
            None => error,
        }
    }

    async fn session(&mut self, told: &mut Option<Close>) -> End {
        let streams = async {
            let control = self.connection.open_bi().await?;
            Ok((control, self.connection.open_uni().await?))
        };
        let ((control_out, control_in), data) = match timeout(OPEN_DEADLINE, streams).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return End::Connection(error),
            Err(_) => return End::Stream("the gateway does not let streams be opened".to_owned()),
        };
        let (control, messages) = mpsc::channel(CONTROL_QUEUE);
        let (frames, next_frame) = mpsc::channel(1);
        let up = LinkEvent::Up(LinkSender { gateway: self.gateway.clone(), control, frames });
        if self.events.send(up).await.is_err() {
            return End::Connection(ConnectionError::LocallyClosed);
        }
        let (connection, events) = (&self.connection, &self.events);
        tokio::select! {
            error = connection.closed() => End::Connection(error),
            end = read_control(control_in, events, &mut self.welcomed, told) => end,
            end = write_control(connection, control_out, messages) => end,
            end = write_frames(data, next_frame, events) => end,
            never = tell_stats(connection, events) => match never {},
        }
    }
}

fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.number()), reason.as_bytes());
}

async fn read_control(
    mut stream: RecvStream,
    events: &mpsc::Sender<LinkEvent>,
    welcomed: &mut bool,
    told: &mut Option<Close>,
) -> End {
    let mut decoder = ControlDecoder::default();
    loop {
        match stream.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => decoder.push(&chunk.bytes),
            Ok(None) => return ended_by_peer().await,
            Err(error) => return error.into(),
        }
        loop {
            let event = match decoder.next_message::<CloudMessage>() {
                Ok(None) => break,
                Ok(Some(message)) => {
                    match &message.body {
                        Some(CloudBody::Welcome(_)) => *welcomed = true,
                        Some(CloudBody::Close(close)) => *told = Some(close.clone()),
                        Some(
                            CloudBody::Mirror(_)
                            | CloudBody::Position(_)
                            | CloudBody::Confirm(_)
                            | CloudBody::Failed(_)
                            | CloudBody::Filters(_),
                        )
                        | None => {}
                    }
                    LinkEvent::Message(message)
                }
                Err(error) => {
                    // The owner closes, with the code that goes with it.
                    let breach = LinkEvent::Breach { reason: error.to_string() };
                    drop(events.send(breach).await);
                    return ended_by_peer().await;
                }
            };
            if events.send(event).await.is_err() {
                return End::Connection(ConnectionError::LocallyClosed);
            }
        }
    }
}

/// The close of the connection follows, from the gateway or from the owner of the site.
async fn ended_by_peer() -> End {
    tokio::time::sleep(FLUSH_DEADLINE).await;
    End::Stream("the gateway ended the control stream".to_owned())
}

async fn write_control(connection: &Connection, mut stream: SendStream, mut messages: mpsc::Receiver<Control>) -> End {
    while let Some(control) = messages.recv().await {
        match control {
            Control::Message(message) => {
                if let Err(error) = stream.write_chunk(encode(&message)).await {
                    return error.into();
                }
            }
            Control::Close { code, reason } => {
                if stream.finish().is_ok() {
                    // Resolves when all of it is acknowledged. If it is not, the close below still tells the reason.
                    drop(timeout(FLUSH_DEADLINE, stream.stopped()).await);
                }
                close(connection, code, &reason);
            }
        }
    }
    // The owner let go of the link without a close: the process ends.
    close(connection, CloseCode::Shutdown, "the agent stops");
    End::Connection(ConnectionError::LocallyClosed)
}

async fn write_frames(
    mut stream: SendStream,
    mut frames: mpsc::Receiver<Outgoing>,
    events: &mpsc::Sender<LinkEvent>,
) -> End {
    loop {
        if events.send(LinkEvent::WriterFree).await.is_err() {
            return End::Connection(ConnectionError::LocallyClosed);
        }
        let Some(frame) = frames.recv().await else {
            // As in `write_control`, which closes.
            return std::future::pending().await;
        };
        let raw_bytes = frame.bytes();
        let mut pieces: Vec<Bytes> = frame.encode();
        if let Err(error) = stream.write_all_chunks(&mut pieces).await {
            return error.into();
        }
        metrics::counter!("tombolo_sent_bytes_total").increment(raw_bytes as u64);
    }
}

async fn tell_stats(connection: &Connection, events: &mpsc::Sender<LinkEvent>) -> Infallible {
    loop {
        tokio::time::sleep(STATS_EVERY).await;
        let stats = connection.stats();
        let stats = LinkStats {
            rtt: stats.path.rtt,
            lost_packets: stats.path.lost_packets,
            sent_packets: stats.path.sent_packets,
            wire_bytes: stats.udp_tx.bytes,
        };
        // Once the owner is gone the streams end the session.
        drop(events.send(LinkEvent::Stats(stats)).await);
    }
}
