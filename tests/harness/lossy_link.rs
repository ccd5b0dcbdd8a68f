//! The forwarder over real sockets: what its counters say is what the far end sees.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::timeout;
use tombolo_tests::lossy_link::{LossyLink, Profile, Way};

/// A client behind the link and a gateway that it reaches.
struct Ends {
    client: UdpSocket,
    gateway: UdpSocket,
    link: LossyLink,
}

impl Ends {
    async fn new(profile: Profile) -> Self {
        let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let link = LossyLink::start(gateway.local_addr().unwrap(), profile).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(link.address()).await.unwrap();
        Self { client, gateway, link }
    }

    /// Sends one packet up and says from whom the gateway got it.
    async fn up(&self) -> Option<SocketAddr> {
        self.client.send(b"up").await.unwrap();
        let mut buffer = [0; 16];
        timeout(Duration::from_secs(1), self.gateway.recv_from(&mut buffer)).await.ok().map(|seen| seen.unwrap().1)
    }

    /// Sends one packet down and says whether it came.
    async fn down(&self, client: SocketAddr) -> bool {
        self.gateway.send_to(b"down", client).await.unwrap();
        let mut buffer = [0; 16];
        timeout(Duration::from_secs(1), self.client.recv(&mut buffer)).await.is_ok()
    }
}

#[tokio::test]
async fn forwards_both_ways_after_the_delay() {
    let way = Way { delay: Duration::from_millis(100), ..Way::CLEAN };
    let ends = Ends::new(Profile { up: way, down: way, seed: 1 }).await;
    let start = Instant::now();
    let client = ends.up().await.expect("the packet arrives");
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert!(ends.down(client).await);
    assert!(start.elapsed() >= Duration::from_millis(200));
    let stats = ends.link.stats();
    assert_eq!((stats.up.delivered_packets, stats.up.delivered_bytes), (1, 2));
    assert_eq!((stats.down.delivered_packets, stats.down.delivered_bytes), (1, 4));
}

#[tokio::test]
async fn darkness_swallows_one_way_or_both_until_it_ends() {
    let ends = Ends::new(Profile::CLEAN).await;
    let client = ends.up().await.expect("the packet arrives");
    ends.link.dark_up(true);
    assert_eq!(ends.up().await, None);
    assert!(ends.down(client).await);
    ends.link.dark(true);
    assert!(!ends.down(client).await);
    ends.link.dark(false);
    assert_eq!(ends.up().await, Some(client));
    assert!(ends.down(client).await);
    let stats = ends.link.stats();
    assert_eq!((stats.up.darkened_packets, stats.down.darkened_packets), (1, 1));
}

#[tokio::test]
async fn gateway_sees_another_address_after_a_change() {
    let ends = Ends::new(Profile::CLEAN).await;
    let first = ends.up().await.expect("the packet arrives");
    assert_eq!(ends.up().await, Some(first));
    ends.link.change_client_address().await;
    let second = ends.up().await.expect("the packet arrives");
    assert_ne!(first, second);
    assert!(ends.down(second).await);
    assert!(!ends.down(first).await, "the old address leads nowhere");
}

#[tokio::test]
async fn redirected_link_reaches_the_other_gateway() {
    let ends = Ends::new(Profile::CLEAN).await;
    ends.up().await.expect("the packet arrives");
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    ends.link.redirect(other.local_addr().unwrap()).await;
    assert_eq!(ends.up().await, None);
    let mut buffer = [0; 16];
    timeout(Duration::from_secs(1), other.recv(&mut buffer)).await.expect("the other gateway gets it").unwrap();
}

#[tokio::test]
async fn loss_duplicates_and_new_settings_show_at_the_far_end() {
    let ends = Ends::new(Profile::CLEAN).await;
    let bad = Way { loss: 0.2, duplicate: 0.2, ..Way::CLEAN };
    ends.link.set(Profile { up: bad, ..Profile::CLEAN });
    let (mut seen, mut packets) = (HashSet::new(), 0_u64);
    let mut buffer = [0; 16];
    for number in 1..=1_000_u32 {
        ends.client.send(&number.to_be_bytes()).await.unwrap();
        // What a busy machine delivers late is waited for at the end.
        let patience = Duration::from_millis(if number == 1_000 { 500 } else { 2 });
        while let Ok(received) = timeout(patience, ends.gateway.recv(&mut buffer)).await {
            assert_eq!(received.unwrap(), 4);
            packets += 1;
            seen.insert(buffer[..4].to_vec());
        }
    }
    let stats = ends.link.stats().up;
    assert_eq!(packets, stats.delivered_packets);
    assert_eq!(seen.len() as u64, 1_000 - stats.lost_packets);
    assert_eq!(packets, 1_000 - stats.lost_packets + stats.duplicated_packets);
    assert!((100..300).contains(&stats.lost_packets), "{stats:?}");
    assert!((80..240).contains(&stats.duplicated_packets), "{stats:?}");
}
