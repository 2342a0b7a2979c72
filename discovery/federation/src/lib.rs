//! What clusters tell each other about their exports, as state machines without I/O.
