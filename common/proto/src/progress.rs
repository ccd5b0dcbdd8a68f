//! How far a partition has come, one struct per side, each with the one inequality that must hold.

use crate::id::Offset;

/// A chain of offsets that does not hold. Always a bug of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("offsets out of order: {chain}")]
pub struct ChainError {
    chain: String,
}

/// The agent's side: `confirmed <= sent <= fetched`. All are the offset after the last one counted; `sent` falls back
/// to `confirmed` when a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeProgress {
    /// The cloud's high watermark, as told.
    pub confirmed: Offset,
    /// Handed to the link in this session.
    pub sent: Offset,
    /// Read from the source; the window holds `[confirmed, fetched)`.
    pub fetched: Offset,
}

impl EdgeProgress {
    /// Everything at `offset`.
    pub fn at(offset: Offset) -> Self {
        Self { confirmed: offset, sent: offset, fetched: offset }
    }

    /// Checks the chain.
    pub fn validate(&self) -> Result<(), ChainError> {
        if 0 <= self.confirmed && self.confirmed <= self.sent && self.sent <= self.fetched {
            Ok(())
        } else {
            Err(ChainError { chain: format!("{self:?}") })
        }
    }
}

/// The gateway's side: `confirmed <= produced <= received`. All are the offset after the last one counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloudProgress {
    /// High watermark of the mirror, as the broker answered it.
    pub confirmed: Offset,
    /// Handed to the broker; falls back when an answer is in doubt.
    pub produced: Offset,
    /// Come in over the link and held in memory; memory holds `[confirmed, received)`.
    pub received: Offset,
}

impl CloudProgress {
    /// Everything at `offset`.
    pub fn at(offset: Offset) -> Self {
        Self { confirmed: offset, produced: offset, received: offset }
    }

    /// Checks the chain.
    pub fn validate(&self) -> Result<(), ChainError> {
        if 0 <= self.confirmed && self.confirmed <= self.produced && self.produced <= self.received {
            Ok(())
        } else {
            Err(ChainError { chain: format!("{self:?}") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_checked() {
        assert!(EdgeProgress::at(5).validate().is_ok());
        assert!(EdgeProgress { confirmed: 6, sent: 5, fetched: 7 }.validate().is_err());
        assert!(EdgeProgress { confirmed: 5, sent: 8, fetched: 7 }.validate().is_err());
        assert!(EdgeProgress::at(-1).validate().is_err());
        assert!(CloudProgress::at(0).validate().is_ok());
        assert!(CloudProgress { confirmed: 1, produced: 0, received: 3 }.validate().is_err());
        assert!(CloudProgress { confirmed: 1, produced: 4, received: 3 }.validate().is_err());
    }
}
