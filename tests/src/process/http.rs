//! GET over a TCP connection of its own: independent of the daemons' own client.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than any daemon tells of 2 000 partitions.
const LARGEST_ANSWER: u64 = 64 << 20;

/// Status code and body.
pub(super) async fn get(address: SocketAddr, path: &str, deadline: Duration) -> io::Result<(u16, String)> {
    timeout(deadline, ask(address, path)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the body ends with the connection and is never chunked.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(LARGEST_ANSWER).read_to_string(&mut answer).await?;
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    });
    parts.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, answer))
}
