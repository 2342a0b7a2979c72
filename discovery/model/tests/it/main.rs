//! Tests of the model through its public interface; each is named after the invariant (design §4),
//! the threat (P) or the rule it guards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that meets the unexpected has to fail")]

mod store;
mod support;
