//! Free loopback ports.
//!
//! They are taken from below Linux's range for outgoing connections (32768 and up): a client that dials a dead broker
//! again and again would at some time be given the broker's own port as its source and connect to itself.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nobody listens on, neither TCP nor UDP, and that was not handed out before by this process. Another
/// process may still take it first: who binds it must be ready to ask for another.
pub fn free_port() -> u16 {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let handed_out = handed_out.get_or_insert_default();
    for _ in 0..10_000 {
        let port = rand::random_range(12_000..32_000);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free && handed_out.insert(port) {
            return port;
        }
    }
    panic!("no free loopback port between 12000 and 32000");
}
