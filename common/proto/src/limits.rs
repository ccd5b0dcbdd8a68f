//! Every size that the other end of a link could choose, bounded. What comes in above a limit is refused before a
//! byte of it is allocated.

/// Largest control message in bytes.
pub const MAX_CONTROL_BYTES: usize = 1 << 20;
/// Largest value the frame size setting may take, in bytes: one batch of the largest size a broker can be told to take
/// in practice.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// Smallest value the frame size setting may take, in bytes.
pub const MIN_FRAME_BYTES: usize = 16 << 10;
/// Most entries in one frame.
pub const MAX_FRAME_ENTRIES: usize = 65_536;
/// Most mirrors of one link.
pub const MAX_MIRRORS: usize = 10_000;
/// Most filters of one link.
pub const MAX_FILTERS: usize = 1_000;
/// Most partitions of one topic.
pub const MAX_PARTITIONS: i32 = 100_000;
/// Most batches and gaps in a tail.
pub const MAX_TAIL: usize = 16;
/// Most entries in one Confirm or `SourcePositions` message.
pub const MAX_ENTRIES: usize = 4_096;
/// Longest free text in a message, in bytes; longer text is cut by the sender and refused by the receiver.
pub const MAX_TEXT: usize = 1_024;
/// Most topic configs in one catalogue entry.
pub const MAX_CONFIGS: usize = 200;
/// Batches of one partition that may be in flight to the cloud: a broker remembers the last five batches of a
/// producer (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
pub const MAX_IN_FLIGHT: usize = 5;
/// Most markers in one request: offsets of a gap that are skipped at once.
pub const MAX_MARKERS: i64 = 1_000;
/// Highest offset at which a mirror is made to start: it takes filler up to there.
pub const MAX_START: i64 = 1_000_000_000_000;
