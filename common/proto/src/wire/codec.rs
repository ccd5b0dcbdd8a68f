//! Length before message: u32 big-endian, then that many bytes of protobuf.

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::MAX_CONTROL_BYTES;

/// Why bytes of the control stream are no message. The connection is closed with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length is above the limit.
    #[error("control message of {length} bytes, allowed are {MAX_CONTROL_BYTES}")]
    TooLong {
        /// Length the peer claims, in bytes.
        length: u32,
    },
    /// Not protobuf, or not of this message.
    #[error("control message is malformed")]
    Malformed(#[from] prost::DecodeError),
}

/// A message with its length before it. Senders keep messages below the limit by bounding what they put in.
pub fn encode<M: prost::Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    debug_assert!(length <= MAX_CONTROL_BYTES, "control message of {length} bytes");
    let mut bytes = BytesMut::with_capacity(4 + length);
    bytes.extend_from_slice(&u32::try_from(length).expect("messages are bounded").to_be_bytes());
    message.encode(&mut bytes).expect("a growing buffer takes any message");
    bytes.freeze()
}

/// Collects bytes of the control stream until a message is whole. Holds at most one message and one read.
#[derive(Debug, Default)]
pub struct ControlDecoder {
    buffer: BytesMut,
}

impl ControlDecoder {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until more arrives. After an error the stream is of no use.
    pub fn next_message<M: prost::Message + Default>(&mut self) -> Result<Option<M>, WireError> {
        let Some(length) = self.buffer.get(..4).and_then(|head| head.try_into().ok()).map(u32::from_be_bytes) else {
            return Ok(None);
        };
        let size = length as usize;
        if size > MAX_CONTROL_BYTES {
            return Err(WireError::TooLong { length });
        }
        if self.buffer.len() < 4 + size {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(M::decode(self.buffer.split_to(size).freeze())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CloseCode, CloudBody, CloudMessage, EdgeBody, EdgeMessage, Position, SourceStart, TailBatch};
    use crate::wire::{PartitionOffset, Positions};

    fn position() -> CloudMessage {
        CloudMessage {
            body: Some(CloudBody::Position(Position {
                mirror: 1,
                partition: 2,
                run: 3,
                next_offset: 5,
                tail: vec![TailBatch { base_offset: 4, last_offset: 4, crc: 0xdead_beef, gap: false }],
                rewind: true,
            })),
        }
    }

    #[test]
    fn messages_come_back_in_any_pieces() {
        let bytes = [encode(&position()), encode(&CloudMessage { body: None }), encode(&position())].concat();
        for step in 1..bytes.len() {
            let mut decoder = ControlDecoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message::<CloudMessage>().expect("valid") {
                    got.push(message);
                }
            }
            assert_eq!(got, [position(), CloudMessage { body: None }, position()]);
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    #[test]
    fn golden_bytes_of_version_1() {
        assert_eq!(hex(&encode(&position())), "000000171a1508011002180320052a09080410041defbeadde3001");
    }

    #[test]
    fn golden_bytes_of_gaps_and_starts() {
        let Some(CloudBody::Position(position)) = position().body else { panic!("as built") };
        let tail = vec![TailBatch::gap(2, 5)];
        let told = CloudMessage { body: Some(CloudBody::Position(Position { tail, rewind: false, ..position })) };
        assert_eq!(hex(&encode(&told)), "000000121a1008011002180320052a06080210042001");
        let start = SourceStart { mirror: 1, partition: 2, run: 3, offset: 300, seen: true };
        let told = EdgeMessage { body: Some(EdgeBody::SourceStart(start)) };
        assert_eq!(hex(&encode(&told)), "0000000d420b08011002180320ac022801");
        let at = PartitionOffset { mirror: 1, partition: 2, offset: 300, run: 0, log_start: Some(4) };
        let told = EdgeMessage { body: Some(EdgeBody::SourcePositions(Positions { entries: vec![at] })) };
        assert_eq!(hex(&encode(&told)), "0000000d2a0b0a090801100218ac022804");
    }

    #[test]
    fn a_message_of_a_newer_peer_is_passed_over() {
        let mut decoder = ControlDecoder::default();
        // Field 99, a message of two bytes: no such field in version 1.
        decoder.push(&[0, 0, 0, 5, 0x9a, 0x06, 0x02, 0x08, 0x01]);
        assert_eq!(decoder.next_message(), Ok(Some(EdgeMessage { body: None })));
    }

    #[test]
    fn oversized_and_malformed_messages_are_refused() {
        let mut decoder = ControlDecoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_message::<EdgeMessage>(), Err(WireError::TooLong { length: u32::MAX }));
        let mut decoder = ControlDecoder::default();
        decoder.push(&[0, 0, 0, 2, 0x0a, 0x7f]);
        assert!(matches!(decoder.next_message::<EdgeMessage>(), Err(WireError::Malformed(_))));
    }

    #[test]
    fn close_codes_survive_the_wire() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(u64::from(code.number())), Some(code));
        }
        assert_eq!(CloseCode::from_number(1 << 40), None);
    }
}
