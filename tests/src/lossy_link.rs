//! A UDP forwarder that behaves like a bad link: between an agent and a gateway, in one process, without root.
//!
//! Every client that dials [`LossyLink::address`] gets an upstream socket of its own, so the gateway sees one address
//! per client, and another one after [`LossyLink::change_client_address`]. What the line does to a packet is decided in
//! `line`, from the profile and its seed alone. All queues are bounded: what does not fit is dropped and counted, as a
//! router would.

mod line;
mod profile;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep_until;

use line::{Fate, Line};
pub use profile::{Profile, Way};

/// More clients than any test has; the oldest flow goes when another one comes.
const MOST_CLIENTS: usize = 64;
/// Packets between a socket and its line, and on the line: 100 ms at 100 000 packets a second.
const MOST_PACKETS: usize = 10_000;
/// The largest UDP payload.
const LARGEST_PACKET: usize = 65_536;

/// A running forwarder; it ends when dropped.
#[derive(Debug)]
pub struct LossyLink {
    address: SocketAddr,
    orders: mpsc::Sender<Order>,
    up: Arc<Direction>,
    down: Arc<Direction>,
    _tasks: JoinSet<()>,
}

/// What happened to the packets of one direction since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub delivered_packets: u64,
    pub delivered_bytes: u64,
    /// Dropped by chance, as the profile asks.
    pub lost_packets: u64,
    /// Dropped because a queue was full.
    pub overflowed_packets: u64,
    /// Dropped because the link was dark.
    pub darkened_packets: u64,
    pub duplicated_packets: u64,
    pub reordered_packets: u64,
}

/// Both directions: up is from the agent to the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub up: Counters,
    pub down: Counters,
}

enum Order {
    /// Give every client another upstream socket.
    Rebind,
    /// The same, towards another gateway.
    Redirect(SocketAddr),
}

/// A packet on its way, and the socket that it leaves by.
struct Packet {
    bytes: Vec<u8>,
    socket: Arc<UdpSocket>,
    /// `None` where the socket is connected.
    target: Option<SocketAddr>,
}

impl LossyLink {
    /// Listens on a free loopback port and forwards to `upstream`. Must be called within a tokio runtime, which drives
    /// it from then on.
    pub async fn start(upstream: SocketAddr, profile: Profile) -> io::Result<Self> {
        let listener = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = listener.local_addr()?;
        let (orders, inbox) = mpsc::channel(16);
        let (up_packets, up_inbox) = mpsc::channel(MOST_PACKETS);
        let (down_packets, down_inbox) = mpsc::channel(MOST_PACKETS);
        let up = Arc::new(Direction::new(profile.up));
        let down = Arc::new(Direction::new(profile.down));
        let clients = Clients {
            listener,
            upstream,
            flows: HashMap::new(),
            opened: 0,
            receivers: JoinSet::new(),
            up: (up_packets, Arc::clone(&up)),
            down: (down_packets, Arc::clone(&down)),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(clients.serve(inbox));
        tasks.spawn(carry(up_inbox, Arc::clone(&up), Line::new(profile.seed)));
        tasks.spawn(carry(down_inbox, Arc::clone(&down), Line::new(profile.seed.wrapping_add(1))));
        Ok(Self { address, orders, up, down, _tasks: tasks })
    }

    /// Where the agent dials.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another behaviour from the next packet on. The seed counts at the start only.
    pub fn set(&self, profile: Profile) {
        *self.up.way() = profile.up;
        *self.down.way() = profile.down;
    }

    /// Cuts the link both ways, packets in flight included, or mends it.
    pub fn dark(&self, dark: bool) {
        self.dark_up(dark);
        self.dark_down(dark);
    }

    /// Cuts the way from the agent to the gateway only.
    pub fn dark_up(&self, dark: bool) {
        self.up.dark.store(dark, Ordering::Relaxed);
    }

    /// Cuts the way from the gateway to the agent only.
    pub fn dark_down(&self, dark: bool) {
        self.down.dark.store(dark, Ordering::Relaxed);
    }

    /// From now on the gateway sees every client under another address, as after a NAT lost its table. What the gateway
    /// still sends to the old address is lost.
    pub async fn change_client_address(&self) {
        self.order(Order::Rebind).await;
    }

    /// Forwards to another gateway from now on, under new client addresses.
    pub async fn redirect(&self, upstream: SocketAddr) {
        self.order(Order::Redirect(upstream)).await;
    }

    pub fn stats(&self) -> Stats {
        Stats { up: self.up.counters(), down: self.down.counters() }
    }

    async fn order(&self, order: Order) {
        // The receiver ends with `self._tasks` only.
        drop(self.orders.send(order).await);
    }
}

/// Live settings and counters of one direction.
#[derive(Debug)]
struct Direction {
    way: Mutex<Way>,
    dark: AtomicBool,
    delivered_packets: AtomicU64,
    delivered_bytes: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
    darkened: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
}

impl Direction {
    fn new(way: Way) -> Self {
        Self {
            way: Mutex::new(way),
            dark: AtomicBool::new(false),
            delivered_packets: AtomicU64::new(0),
            delivered_bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            darkened: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            reordered: AtomicU64::new(0),
        }
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            delivered_packets: read(&self.delivered_packets),
            delivered_bytes: read(&self.delivered_bytes),
            lost_packets: read(&self.lost),
            overflowed_packets: read(&self.overflowed),
            darkened_packets: read(&self.darkened),
            duplicated_packets: read(&self.duplicated),
            reordered_packets: read(&self.reordered),
        }
    }

    /// Hands a packet to the line, or drops it where the line's inbox is full.
    fn offer(&self, packets: &mpsc::Sender<Packet>, packet: Packet) {
        if packets.try_send(packet).is_err() {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Flow {
    socket: Arc<UdpSocket>,
    receiver: AbortHandle,
    /// Counts up with every flow: the lowest is the oldest.
    number: u64,
}

/// The listening side: who dialled, and by which upstream socket each one is forwarded.
struct Clients {
    listener: Arc<UdpSocket>,
    upstream: SocketAddr,
    flows: HashMap<SocketAddr, Flow>,
    opened: u64,
    receivers: JoinSet<()>,
    up: (mpsc::Sender<Packet>, Arc<Direction>),
    down: (mpsc::Sender<Packet>, Arc<Direction>),
}

impl Clients {
    async fn serve(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut buffer = vec![0; LARGEST_PACKET];
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(order) => self.obey(&order),
                },
                received = self.listener.recv_from(&mut buffer) => {
                    // An error here is a late ICMP answer to something sent before: no packet came.
                    if let Ok((length, client)) = received {
                        self.forward(client, buffer.get(..length).unwrap_or_default()).await;
                    }
                }
            }
        }
    }

    fn obey(&mut self, order: &Order) {
        if let Order::Redirect(upstream) = order {
            self.upstream = *upstream;
        }
        for (_, flow) in self.flows.drain() {
            flow.receiver.abort();
        }
    }

    async fn forward(&mut self, client: SocketAddr, bytes: &[u8]) {
        if !self.flows.contains_key(&client) && self.open(client).await.is_err() {
            self.up.1.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(flow) = self.flows.get(&client) {
            let packet = Packet { bytes: bytes.to_vec(), socket: Arc::clone(&flow.socket), target: None };
            self.up.1.offer(&self.up.0, packet);
        }
    }

    /// Opens an upstream socket for a client; the oldest client goes where there are too many.
    async fn open(&mut self, client: SocketAddr) -> io::Result<()> {
        if self.flows.len() >= MOST_CLIENTS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.number).map(|(client, _)| *client);
            if let Some(flow) = oldest.and_then(|oldest| self.flows.remove(&oldest)) {
                flow.receiver.abort();
            }
        }
        while self.receivers.try_join_next().is_some() {}
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        socket.connect(self.upstream).await?;
        let (packets, direction) = (self.down.0.clone(), Arc::clone(&self.down.1));
        let receiver =
            self.receivers.spawn(answer(Arc::clone(&socket), Arc::clone(&self.listener), client, packets, direction));
        self.opened += 1;
        self.flows.insert(client, Flow { socket, receiver, number: self.opened });
        Ok(())
    }
}

/// Takes what the gateway sends to one client.
async fn answer(
    socket: Arc<UdpSocket>,
    listener: Arc<UdpSocket>,
    client: SocketAddr,
    packets: mpsc::Sender<Packet>,
    direction: Arc<Direction>,
) {
    let mut buffer = vec![0; LARGEST_PACKET];
    loop {
        // "Connection refused" while the gateway is down: each is told once, so this does not spin.
        if let Ok(length) = socket.recv(&mut buffer).await {
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            direction.offer(&packets, Packet { bytes, socket: Arc::clone(&listener), target: Some(client) });
        }
    }
}

/// The line of one direction: holds packets until they are due.
async fn carry(mut inbox: mpsc::Receiver<Packet>, direction: Arc<Direction>, mut line: Line) {
    // Ordered by due time, then by arrival.
    let mut in_flight: BTreeMap<(Instant, u64), Packet> = BTreeMap::new();
    let mut number = 0;
    loop {
        let now = Instant::now();
        while let Some(due) = in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            deliver(&direction, due.remove()).await;
        }
        let next = in_flight.first_key_value().map(|((due, _), _)| *due);
        let packet = tokio::select! {
            packet = inbox.recv() => match packet {
                None => return,
                Some(packet) => packet,
            },
            () = sleep_until(next.unwrap_or(now + Duration::from_secs(1)).into()) => continue,
        };
        if direction.dark.load(Ordering::Relaxed) {
            direction.darkened.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let way = *direction.way();
        let fate = line.fate(Instant::now(), packet.bytes.len(), &way);
        let (due, held_back, copy) = match fate {
            Fate::Lost => {
                direction.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Fate::Overflowed => {
                direction.overflowed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Fate::Arrives { due, held_back, copy } => (due, held_back, copy),
        };
        if in_flight.len() + 2 > MOST_PACKETS {
            direction.overflowed.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        direction.reordered.fetch_add(u64::from(held_back), Ordering::Relaxed);
        if let Some(due) = copy {
            direction.duplicated.fetch_add(1, Ordering::Relaxed);
            let twin = Packet { bytes: packet.bytes.clone(), socket: Arc::clone(&packet.socket), ..packet };
            in_flight.insert((due, number), twin);
            number += 1;
        }
        in_flight.insert((due, number), packet);
        number += 1;
    }
}

async fn deliver(direction: &Direction, packet: Packet) {
    if direction.dark.load(Ordering::Relaxed) {
        direction.darkened.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let sent = match packet.target {
        Some(target) => packet.socket.send_to(&packet.bytes, target).await,
        None => packet.socket.send(&packet.bytes).await,
    };
    match sent {
        Ok(length) => {
            direction.delivered_packets.fetch_add(1, Ordering::Relaxed);
            direction.delivered_bytes.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        // Nobody listens there, or the old client address is gone: the packet is lost like on any line.
        Err(_) => {
            direction.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
