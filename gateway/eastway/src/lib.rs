//! The `eastway` process: roles, wiring, configuration, proxies and the command line.
//!
//! Everything that knows two leaf crates at once lives here; the leaves never know each other.

pub mod adapters;
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod human;
pub mod local;
pub mod proxy;
pub mod roles;
pub mod router;
pub mod telemetry;
