//! The asking side of `/status`, and how commands print what they got.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer that is read: 2 000 partitions take less than 1 MiB.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// Why no status was had.
#[derive(Debug, Error)]
pub enum StatusError {
    #[error("nothing answers at {address}: {source}; is the daemon running, and is this its http.listen?")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("no answer from {address} within {}", humantime::format_duration(*deadline))]
    Deadline { address: SocketAddr, deadline: Duration },
    #[error("connection to {address} broke: {source}")]
    Broken {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{address} answered {line:?}: not a tombolo daemon?")]
    Refused { address: SocketAddr, line: String },
    #[error("{address} answered with more than {MAX_ANSWER_BYTES} bytes")]
    TooLong { address: SocketAddr },
    #[error("{address} answered with what is no JSON: {source}")]
    Json {
        address: SocketAddr,
        #[source]
        source: serde_json::Error,
    },
}

/// How a command prints: `--output table|json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// Text that is no output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("allowed: table, json")]
pub struct OutputError;

impl FromStr for Output {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => Err(OutputError),
        }
    }
}

/// Asks the daemon at `address` for its status document. The deadline covers the whole exchange.
pub async fn fetch(address: SocketAddr, deadline: Duration) -> Result<Value, StatusError> {
    match tokio::time::timeout(deadline, exchange(address)).await {
        Ok(result) => result,
        Err(_) => Err(StatusError::Deadline { address, deadline }),
    }
}

/// Prints the document as it is for `json`, through `table` for people.
pub fn print(document: &Value, output: Output, table: impl FnOnce(&Value) -> String) -> io::Result<()> {
    let text = match output {
        Output::Json => format!("{document:#}"),
        Output::Table => table(document),
    };
    writeln!(io::stdout().lock(), "{}", text.trim_end())
}

/// Columns aligned by spaces, as an operator pipes them on.
pub fn table<C: Into<String>>(head: &[&str], rows: impl IntoIterator<Item = Vec<C>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(Into::into).collect::<Vec<String>>());
    }
    table.trim_fmt()
}

/// HTTP/1.0: one request, one answer, end of connection, and no transfer coding to undo.
async fn exchange(address: SocketAddr) -> Result<Value, StatusError> {
    let broken = |source| StatusError::Broken { address, source };
    let mut stream = TcpStream::connect(address).await.map_err(|source| StatusError::Connect { address, source })?;
    let request = format!("GET /status HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut answer).await.map_err(broken)?;
    if answer.len() as u64 > MAX_ANSWER_BYTES {
        return Err(StatusError::TooLong { address });
    }
    let (head, body) = split_head(&answer);
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default());
    if line.split(' ').nth(1) != Some("200") {
        let line = line.chars().take(80).collect();
        return Err(StatusError::Refused { address, line });
    }
    serde_json::from_slice(body).map_err(|source| StatusError::Json { address, source })
}

fn split_head(answer: &[u8]) -> (&[u8], &[u8]) {
    const END: &[u8] = b"\r\n\r\n";
    answer
        .windows(END.len())
        .position(|window| window == END)
        .and_then(|at| Some((answer.get(..at)?, answer.get(at + END.len()..)?)))
        .unwrap_or((answer, &[]))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};
    use std::thread::JoinHandle;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A server for one connection: reads the request, answers, ends.
    fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<()>) {
        use std::io::Read;

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        (address, server)
    }

    async fn error_after(answer: &'static str) -> String {
        let (address, server) = answering(answer);
        let error = fetch(address, DEADLINE).await.unwrap_err();
        server.join().unwrap();
        error.to_string()
    }

    #[tokio::test]
    async fn reads_the_document() {
        let (address, server) = answering("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"lag\": 3}");
        assert_eq!(fetch(address, DEADLINE).await.unwrap(), serde_json::json!({"lag": 3}));
        server.join().unwrap();
    }

    #[tokio::test]
    async fn says_what_the_answer_was() {
        let text = error_after("HTTP/1.0 404 Not Found\r\n\r\n").await;
        assert!(text.contains("\"HTTP/1.0 404 Not Found\": not a tombolo daemon"), "{text}");
        let text = error_after("+PONG\r\n").await;
        assert!(text.contains("+PONG"), "{text}");
        let text = error_after("HTTP/1.0 200 OK\r\n\r\nhello").await;
        assert!(text.contains("no JSON"), "{text}");
        let text = error_after("").await;
        assert!(text.contains("not a tombolo daemon"), "{text}");
    }

    #[tokio::test]
    async fn says_that_nothing_listens() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = fetch(address, DEADLINE).await.unwrap_err();
        assert!(matches!(error, StatusError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("is the daemon running"), "{error}");
    }

    #[tokio::test]
    async fn gives_up_at_the_deadline() {
        // Nobody accepts: the kernel completes the connection and no answer comes.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = fetch(address, Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(error, StatusError::Deadline { .. }), "{error}");
    }

    #[test]
    fn table_aligns_columns_without_trailing_space() {
        let rows = [vec!["orders", "12"], vec!["a", "3"]];
        let text = table(&["TOPIC", "LAG"], rows);
        assert_eq!(text, " TOPIC   LAG\n orders  12\n a       3");
    }

    #[test]
    fn output_names_its_formats() {
        assert_eq!("json".parse(), Ok(Output::Json));
        assert_eq!("table".parse(), Ok(Output::Table));
        assert_eq!("yaml".parse::<Output>().unwrap_err().to_string(), "allowed: table, json");
    }
}
