//! What a process does: gateway, controller, certificate authority.
