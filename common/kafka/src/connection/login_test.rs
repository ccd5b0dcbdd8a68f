//! Logins against a scripted broker; real brokers have their own tests.

use bytes::Bytes;
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::*;
use crate::testing;

fn sasl(mechanism: &str) -> Sasl {
    let properties = [
        ("bootstrap.servers", "scripted:9092"),
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", mechanism),
        ("sasl.username", "ship"),
        ("sasl.password", "s3cret"),
    ];
    ClientSettings::from_properties(properties).unwrap().sasl.unwrap()
}

fn failure(result: Result<(), Failure>) -> ConnectionErrorKind {
    match result {
        Err(Failure::Kind(kind)) => kind,
        Err(Failure::Poisoned(cause)) => panic!("poisoned: {cause}"),
        Ok(()) => panic!("logged in"),
    }
}

#[tokio::test]
async fn plain_sends_user_and_password() {
    let (connection, mut broker) = testing::connection();
    let sasl = sasl("PLAIN");
    let (login, ()) = tokio::join!(log_in(&connection, &sasl), async {
        let asked = broker.turn::<SaslHandshakeRequest>(|_| SaslHandshakeResponse::default()).await;
        assert_eq!(&*asked.request.mechanism, "PLAIN");
        let asked = broker.turn::<SaslAuthenticateRequest>(|_| SaslAuthenticateResponse::default()).await;
        assert_eq!(asked.request.auth_bytes, Bytes::from_static(b"\0ship\0s3cret"));
    });
    assert!(login.is_ok());
}

#[tokio::test]
async fn refused_login_names_mechanism_user_and_the_brokers_words() {
    let (connection, mut broker) = testing::connection();
    let sasl = sasl("PLAIN");
    let (login, ()) = tokio::join!(log_in(&connection, &sasl), async {
        broker.turn::<SaslHandshakeRequest>(|_| SaslHandshakeResponse::default()).await;
        broker
            .turn::<SaslAuthenticateRequest>(|_| {
                SaslAuthenticateResponse::default()
                    .with_error_code(ErrorCode::SASL_AUTHENTICATION_FAILED.number())
                    .with_error_message(Some(StrBytes::from_static_str("Invalid username or password")))
            })
            .await;
    });
    let kind = failure(login);
    assert!(!kind.retriable());
    let text = kind.to_string();
    assert_eq!(
        text,
        "SASL PLAIN login as \"ship\" failed with SASL_AUTHENTICATION_FAILED (58): Invalid username or password"
    );
}

#[tokio::test]
async fn refused_mechanism_names_what_the_broker_offers() {
    let (connection, mut broker) = testing::connection();
    let sasl = sasl("SCRAM-SHA-512");
    let (login, _) = tokio::join!(
        log_in(&connection, &sasl),
        broker.turn::<SaslHandshakeRequest>(|_| {
            SaslHandshakeResponse::default()
                .with_error_code(ErrorCode::UNSUPPORTED_SASL_MECHANISM.number())
                .with_mechanisms(vec![StrBytes::from_static_str("GSSAPI")])
        })
    );
    let text = failure(login).to_string();
    assert!(text.contains("SCRAM-SHA-512 refused") && text.contains("GSSAPI"), "{text}");
}

#[tokio::test]
async fn server_that_does_not_know_the_password_is_not_believed() {
    let (connection, mut broker) = testing::connection();
    let sasl = sasl("SCRAM-SHA-256");
    let (login, ()) = tokio::join!(log_in(&connection, &sasl), async {
        broker.turn::<SaslHandshakeRequest>(|_| SaslHandshakeResponse::default()).await;
        broker
            .turn::<SaslAuthenticateRequest>(|asked| {
                let first = std::str::from_utf8(&asked.request.auth_bytes).unwrap();
                let nonce = first.rsplit_once("r=").unwrap().1;
                let challenge = format!("r={nonce}server,s=c2FsdHNhbHQ=,i=4096");
                SaslAuthenticateResponse::default().with_auth_bytes(challenge.into())
            })
            .await;
        broker
            .turn::<SaslAuthenticateRequest>(|_| {
                let proof = Bytes::from_static(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
                SaslAuthenticateResponse::default().with_auth_bytes(proof)
            })
            .await;
    });
    let kind = failure(login);
    assert!(matches!(kind, ConnectionErrorKind::Exchange { mechanism: "SCRAM-SHA-256", .. }), "{kind}");
}
