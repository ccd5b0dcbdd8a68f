//! The one raw log compare: two logs, batch for batch.
