//! What is wanted for a service, and the way there: a fake API server takes every action until nothing is left to do.

mod hold;
mod istio;
mod objects;
mod requests;
mod rig;
