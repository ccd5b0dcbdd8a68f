//! Rights in a cluster that asks for them: `CreateAcls` v1, written by hand, over the brokers' own listener.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cluster::{ClusterSpec, KafkaCluster, Listener};

const DEADLINE: Duration = Duration::from_secs(30);
const CREATE_ACLS: i16 = 30;
/// Of the only resource of that type.
const CLUSTER: (u8, &str) = (4, "kafka-cluster");
const LITERAL: u8 = 3;
const ALLOW: u8 = 3;

/// Operations on a cluster (`org.apache.kafka.common.acl.AclOperation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterOperation {
    Alter = 7,
    Describe = 8,
}

impl ClusterSpec {
    /// Users may do what nobody has been given a right to; brokers talk among themselves as nobody, who may do all.
    #[must_use]
    pub fn with_authorizer(self) -> Self {
        self.listener(Listener::SaslSsl)
            .set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
            .set("super.users", "User:ANONYMOUS")
            .set("allow.everyone.if.no.acl.found", "true")
    }
}

impl KafkaCluster {
    /// Gives a user a right on the cluster: from the first such on, all others lack theirs.
    pub async fn allow(&self, user: &str, operation: ClusterOperation) {
        let mut body = Vec::new();
        body.extend(1_i32.to_be_bytes());
        body.push(CLUSTER.0);
        string(&mut body, CLUSTER.1);
        body.push(LITERAL);
        string(&mut body, &format!("User:{user}"));
        string(&mut body, "*");
        body.push(operation as u8);
        body.push(ALLOW);
        let answer = timeout(DEADLINE, ask(self.internal_port(), &body)).await;
        let answer = answer.expect("the broker answers in time").expect("the broker answers");
        // Correlation id, throttle time, one result: its error code and a message.
        let code = answer.get(12..14).and_then(|bytes| bytes.try_into().ok()).map(i16::from_be_bytes);
        assert_eq!(code, Some(0), "the right cannot be given: {}", String::from_utf8_lossy(&answer));
    }
}

async fn ask(port: u16, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut request = Vec::new();
    request.extend(CREATE_ACLS.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    string(&mut request, "tombolo-tests");
    request.extend(body);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&i32::try_from(request.len()).expect("a short request").to_be_bytes()).await?;
    stream.write_all(&request).await?;
    let size = stream.read_u32().await?;
    let mut answer = vec![0; usize::try_from(size.min(1 << 20)).expect("a megabyte fits")];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn string(buffer: &mut Vec<u8>, text: &str) {
    buffer.extend(i16::try_from(text.len()).expect("a short text").to_be_bytes());
    buffer.extend(text.as_bytes());
}
