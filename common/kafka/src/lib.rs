//! Raw Kafka client of tombolo.
