//! Bytes between local connections and links.
//!
//! [`outbound`] takes a local connection to a service, wherever that is; [`inbound`] serves the
//! streams that peers open; [`vip`] listens on the virtual addresses of imports, `udp` carries what comes there over UDP, [`hbone`] serves sidecars, and
//! [`sni`] those of Istio. No
//! module here decides where to go: that is [`crate::router`].

pub mod anyip;
pub(crate) mod bench;
pub mod clients;
pub mod connection;
pub mod copy;
pub mod deliveries;
pub mod dial;
pub mod hbone;
mod homes;
pub mod inbound;
pub mod outbound;
pub mod reach;
pub mod sni;
mod udp;
pub mod vip;
