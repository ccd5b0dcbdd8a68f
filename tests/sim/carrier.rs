//! The link between agent and gateways, byte for byte: streams with delay and bandwidth that go dark, and connections
//! that die at any byte, for each end at its own time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tombolo_proto::id::Time;

use crate::dice::Dice;

/// One stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    AgentControl,
    AgentData,
    GatewayControl,
}

#[derive(Debug, Default)]
struct Stream {
    chunks: VecDeque<(Time, Bytes)>,
    bytes: usize,
    line_free: Time,
    last_arrival: Time,
    /// A delivery is on the event queue.
    awaited: bool,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Number of the gateway, and of its process.
    pub(crate) gateway: usize,
    pub(crate) process: u64,
    pub(crate) agent: u64,
    pub(crate) agent_up: bool,
    pub(crate) gateway_up: bool,
    /// Nothing is delivered any more.
    pub(crate) broken: bool,
    streams: BTreeMap<Flow, Stream>,
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Carrier {
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    /// Nothing arrives before this.
    pub(crate) dark_until: Time,
}

/// What the line does to bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) delay: (usize, usize),
    pub(crate) bytes_per_second: usize,
}

impl Carrier {
    pub(crate) fn open(&mut self, gateway: usize, process: u64, agent: u64) -> u64 {
        self.next_id += 1;
        self.connections.insert(
            self.next_id,
            Connection {
                gateway,
                process,
                agent,
                agent_up: true,
                gateway_up: true,
                broken: false,
                streams: BTreeMap::new(),
            },
        );
        self.next_id
    }

    pub(crate) fn connection(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    /// Forgets connections that no end holds.
    pub(crate) fn tidy(&mut self) {
        self.connections.retain(|_, connection| connection.agent_up || connection.gateway_up);
    }

    /// Bytes of a stream on their way.
    pub(crate) fn backlog(&self, id: u64, flow: Flow) -> usize {
        let stream = self.connections.get(&id).and_then(|connection| connection.streams.get(&flow));
        stream.map_or(0, |stream| stream.bytes)
    }

    /// Puts bytes on the line, in pieces of any size. Returns when to call [`Carrier::arrived`], unless that is known.
    pub(crate) fn send(
        &mut self,
        id: u64,
        flow: Flow,
        mut bytes: Bytes,
        line: Line,
        dice: &mut Dice,
        now: Time,
    ) -> Option<Time> {
        let stream = self.connections.get_mut(&id)?.streams.entry(flow).or_default();
        while !bytes.is_empty() {
            let most = bytes.len().min(4_000);
            let size = if dice.chance(300) { dice.between(1, most) } else { most };
            let chunk = bytes.split_to(size);
            let on_line = u64::try_from(size * 1_000_000 / line.bytes_per_second).expect("small");
            stream.line_free = stream.line_free.max(now) + Time::from_micros(on_line);
            stream.last_arrival = stream.last_arrival.max(stream.line_free + dice.millis(line.delay.0, line.delay.1));
            stream.bytes += size;
            stream.chunks.push_back((stream.last_arrival, chunk));
        }
        if std::mem::replace(&mut stream.awaited, true) {
            return None;
        }
        stream.chunks.front().map(|&(at, _)| at)
    }

    /// Takes what has arrived. Returns it, and when to call again.
    pub(crate) fn arrived(&mut self, id: u64, flow: Flow, now: Time) -> (Vec<Bytes>, Option<Time>) {
        let dark_until = self.dark_until;
        let Some(connection) = self.connections.get_mut(&id) else {
            return (Vec::new(), None);
        };
        let Some(stream) = connection.streams.get_mut(&flow) else {
            return (Vec::new(), None);
        };
        if connection.broken {
            stream.chunks.clear();
            return (Vec::new(), None);
        }
        if now < dark_until {
            return (Vec::new(), Some(dark_until));
        }
        let mut whole = Vec::new();
        while let Some((_, chunk)) = stream.chunks.pop_front_if(|&mut (at, _)| at <= now) {
            stream.bytes -= chunk.len();
            whole.push(chunk);
        }
        let next = stream.chunks.front().map(|&(at, _)| at);
        stream.awaited = next.is_some();
        (whole, next)
    }
}
