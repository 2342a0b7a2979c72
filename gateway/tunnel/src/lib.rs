//! Links between gateways.
