//! tombolo on site: reads the local Kafka cluster and dials out.
