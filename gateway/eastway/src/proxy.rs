//! Bytes between local connections and links.
