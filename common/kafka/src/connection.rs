//! One connection to one broker.

/// Handle of a connection; clones share it. The socket closes with the last handle.
#[derive(Debug, Clone)]
pub struct Connection {}

impl Connection {
    /// Node id of the broker, -1 for a bootstrap address.
    pub fn broker_id(&self) -> i32 {
        todo!()
    }

    /// Whether the connection has failed for good.
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }

    /// Waits until the connection has failed.
    pub async fn poisoned(&self) {
        todo!()
    }
}
