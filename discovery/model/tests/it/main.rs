//! Tests of the model through its public interface; each is named after the invariant (design §4),
//! the threat (P) or the rule it guards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that meets the unexpected has to fail")]

mod access;
mod describe;
mod endpoints;
mod merge;
mod pick;
mod properties;
mod random;
mod registries;
mod route;
mod store;
mod support;
mod view;
mod vip;
