//! tombolo in the cloud: accepts links and writes mirrors.
