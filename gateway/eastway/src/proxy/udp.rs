//! UDP: what one client sends from one port to one address is a flow, which goes to one endpoint for as long as packets
//! pass.
//!
//! [`listener`] takes packets at virtual addresses and gives each to its flow, [`client`] finds the other end of a flow as
//! [`outbound`](super::outbound) does for a connection, [`served`] is the owner's side. A flow is over when nothing passed
//! for a while, see [`activity`], or when one of its ends says so; the client's next packet begins another one, which may
//! go elsewhere. Nothing waits for a packet to be taken: what cannot go on at once is dropped and counted.

mod activity;
pub(super) mod client;
pub(super) mod listener;
pub(super) mod served;
mod socket;

pub(super) use socket::PacketSocket;
