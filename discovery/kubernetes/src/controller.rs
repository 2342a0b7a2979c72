//! The writing half: what the Multi-Cluster Services API asks for, in the API server of this cluster.

pub mod api;
pub mod cache;
pub mod desired;
pub mod difference;
pub mod names;
pub mod networks;
pub mod object;
pub mod observe;
pub mod peers;
pub mod ports;
pub mod property;
mod queue;
pub mod reconcile;
pub mod selection;
pub mod statuses;
pub mod trust;

#[cfg(test)]
mod tests;
