//! The writing half: what the Multi-Cluster Services API asks for, in the API server of this cluster.

pub mod desired;
pub mod difference;
pub mod names;
pub mod object;
pub mod ports;

#[cfg(test)]
mod tests;
