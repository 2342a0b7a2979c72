//! Health, metrics and the read-only admin port.
