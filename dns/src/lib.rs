//! Answers DNS for remote services.
