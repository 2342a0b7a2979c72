//! Sources of local truth.
