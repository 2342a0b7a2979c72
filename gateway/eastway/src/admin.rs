//! Three small HTTP listeners: health, metrics, and the read-only admin port.
//!
//! Nothing here changes anything (invariant I10): all methods but GET are refused, and what is shown
//! holds no key and no token. What is shown comes through [`AdminSource`], so that this module knows HTTP and
//! views, and nothing of links, stores or certificates.

pub mod check;
pub mod readiness;
pub mod source;
pub mod views;

pub use readiness::{Guard, Readiness};
pub use source::{AdminSource, BoxFuture, DescribeQuery, SourceError};
