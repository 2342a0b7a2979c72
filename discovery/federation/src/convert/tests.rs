//! Conversions: every rule of the wire, and every bad record.
