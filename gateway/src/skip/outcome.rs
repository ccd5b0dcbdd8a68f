//! What a broker's answer to markers means for the partition. Pure.

use tombolo_kafka::error::{ErrorCode, KafkaError};
use tombolo_proto::id::Offset;
use tombolo_proto::mirror::SkipOutcome;

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// All there is to know.
    Told(SkipOutcome),
    /// Only the log end tells; with the error, where there was one.
    Look(Option<ErrorCode>),
}

/// Of one partition of an answered request. The broker merges the results of several markers into one, so no error says
/// that one was appended, and an error that one was not.
pub(super) fn of_answer(offset: Offset, count: i64, result: Result<(), ErrorCode>) -> Appended {
    match result {
        Ok(()) if count == 1 => Appended::Told(SkipOutcome::Appended { log_end: offset + 1 }),
        Ok(()) => Appended::Look(None),
        // Asked before anything is appended, for all of a request.
        Err(code) if is_final(code) => Appended::Told(SkipOutcome::Refused { reason: code.to_string() }),
        // It stands elsewhere now, or is gone: this broker's log end is not the partition's.
        Err(code) if code.refresh_metadata() => Appended::Told(SkipOutcome::Doubt { reason: code.to_string() }),
        Err(code) => Appended::Look(Some(code)),
    }
}

/// Of a partition whose log was looked at after the answer.
pub(super) fn of_look(offset: Offset, error: Option<ErrorCode>, log_end: Result<Offset, String>) -> SkipOutcome {
    match (log_end, error) {
        (Ok(log_end), None) => SkipOutcome::Appended { log_end },
        (Ok(log_end), Some(_)) if log_end > offset => SkipOutcome::Appended { log_end },
        (Ok(_), Some(code)) => SkipOutcome::Doubt { reason: code.to_string() },
        (Err(reason), Some(code)) => SkipOutcome::Doubt { reason: format!("{code}; then the log end: {reason}") },
        (Err(reason), None) => SkipOutcome::Doubt { reason: format!("the log end after markers: {reason}") },
    }
}

/// Of every partition of a request without an answer.
pub(super) fn of_error(error: &KafkaError) -> SkipOutcome {
    let reason = error.to_string();
    if error.is_refusal(is_final) { SkipOutcome::Refused { reason } } else { SkipOutcome::Doubt { reason } }
}

/// Codes that say "none was appended" and would say so again. A newer term's (52) and a fence's (47) are not among them:
/// the session is about to learn who holds the link.
fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CLUSTER_AUTHORIZATION_FAILED
            | ErrorCode::UNSUPPORTED_VERSION
            | ErrorCode::INVALID_REQUEST
            | ErrorCode::UNSUPPORTED_FOR_MESSAGE_FORMAT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_marker_without_an_error_is_all_there_is_to_know() {
        assert_eq!(of_answer(7, 1, Ok(())), Appended::Told(SkipOutcome::Appended { log_end: 8 }));
        assert_eq!(of_answer(7, 2, Ok(())), Appended::Look(None), "the answer is of one of them");
    }

    #[test]
    fn errors_are_looked_into_unless_they_are_certain_or_the_log_is_elsewhere() {
        let refused = of_answer(7, 5, Err(ErrorCode::CLUSTER_AUTHORIZATION_FAILED));
        assert!(matches!(refused, Appended::Told(SkipOutcome::Refused { .. })), "{refused:?}");
        for code in [ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, ErrorCode::NOT_LEADER_OR_FOLLOWER] {
            let elsewhere = of_answer(7, 1, Err(code));
            assert!(matches!(elsewhere, Appended::Told(SkipOutcome::Doubt { .. })), "{elsewhere:?}");
        }
        for code in [
            ErrorCode::REQUEST_TIMED_OUT,
            ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            ErrorCode::NOT_ENOUGH_REPLICAS,
            ErrorCode::TRANSACTION_COORDINATOR_FENCED,
            ErrorCode::INVALID_PRODUCER_EPOCH,
        ] {
            assert_eq!(of_answer(7, 1, Err(code)), Appended::Look(Some(code)));
        }
    }

    #[test]
    fn the_log_end_counts() {
        let fenced = Some(ErrorCode::TRANSACTION_COORDINATOR_FENCED);
        assert_eq!(of_look(7, None, Ok(12)), SkipOutcome::Appended { log_end: 12 });
        assert_eq!(of_look(7, Some(ErrorCode::REQUEST_TIMED_OUT), Ok(9)), SkipOutcome::Appended { log_end: 9 });
        assert!(matches!(of_look(7, fenced, Ok(7)), SkipOutcome::Doubt { .. }));
        assert!(matches!(of_look(7, None, Err("no answer".to_owned())), SkipOutcome::Doubt { .. }));
    }
}
