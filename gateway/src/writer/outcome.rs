//! What a broker's answer means for the partition. Pure.

use tombolo_kafka::produce::ProduceAck;
use tombolo_kafka::{ErrorCode, KafkaError};
use tombolo_proto::mirror::Outcome;

/// Of one batch of an answered request.
pub(super) fn of_answer(result: Result<ProduceAck, ErrorCode>, message: Option<&str>) -> Outcome {
    match result {
        Ok(ack) => Outcome::Appended { base_offset: ack.base_offset },
        Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER | ErrorCode::DUPLICATE_SEQUENCE_NUMBER) => Outcome::Sequence,
        Err(code) => {
            let reason = message.map_or_else(|| code.to_string(), |message| format!("{code}: {message}"));
            if is_final(code) { Outcome::Refused { reason } } else { Outcome::Doubt { reason } }
        }
    }
}

/// Of every batch of a request without an answer.
pub(super) fn of_error(error: &KafkaError) -> Outcome {
    let reason = error.to_string();
    if error.is_refusal(is_final) { Outcome::Refused { reason } } else { Outcome::Doubt { reason } }
}

/// Codes that say "not appended" and would say so again. What is not listed, codes newer than this list included, is
/// looked into instead: a mirror that stops for nothing is worse than one that asks once more.
fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CORRUPT_MESSAGE
            | ErrorCode::MESSAGE_TOO_LARGE
            | ErrorCode::RECORD_LIST_TOO_LARGE
            | ErrorCode::INVALID_TOPIC_EXCEPTION
            | ErrorCode::INVALID_REQUIRED_ACKS
            | ErrorCode::TOPIC_AUTHORIZATION_FAILED
            | ErrorCode::CLUSTER_AUTHORIZATION_FAILED
            | ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED
            | ErrorCode::INVALID_TIMESTAMP
            | ErrorCode::UNSUPPORTED_VERSION
            | ErrorCode::UNSUPPORTED_FOR_MESSAGE_FORMAT
            | ErrorCode::UNSUPPORTED_COMPRESSION_TYPE
            | ErrorCode::INVALID_REQUEST
            | ErrorCode::POLICY_VIOLATION
            | ErrorCode::INVALID_PRODUCER_EPOCH
            | ErrorCode::INVALID_PRODUCER_ID_MAPPING
            | ErrorCode::INVALID_TXN_STATE
            | ErrorCode::PRODUCER_FENCED
            | ErrorCode::INVALID_RECORD
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(base_offset: i64) -> ProduceAck {
        ProduceAck { base_offset, log_start_offset: 0 }
    }

    #[test]
    fn every_code_that_may_have_appended_is_a_doubt() {
        for number in (-1..400).filter(|&number| number != 0) {
            let code = ErrorCode::from_wire(number).unwrap();
            let outcome = of_answer(Err(code), None);
            if code.produce_is_ambiguous() {
                assert!(matches!(outcome, Outcome::Doubt { .. }), "{code}: {outcome:?}");
            }
        }
    }

    #[test]
    fn answers_say_what_became_of_a_batch() {
        assert_eq!(of_answer(Ok(ack(7)), None), Outcome::Appended { base_offset: 7 });
        for code in [ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER, ErrorCode::DUPLICATE_SEQUENCE_NUMBER] {
            assert_eq!(of_answer(Err(code), None), Outcome::Sequence);
        }
        let refused = of_answer(Err(ErrorCode::MESSAGE_TOO_LARGE), Some("1 > 0"));
        let reason = "MESSAGE_TOO_LARGE (10): 1 > 0".to_owned();
        assert_eq!(refused, Outcome::Refused { reason });
        for code in [
            ErrorCode::NOT_LEADER_OR_FOLLOWER,
            ErrorCode::NOT_ENOUGH_REPLICAS,
            ErrorCode::REQUEST_TIMED_OUT,
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
        ] {
            assert!(matches!(of_answer(Err(code), None), Outcome::Doubt { .. }), "{code}");
        }
    }
}
