//! Certificates: who this gateway is, and whom it accepts.
