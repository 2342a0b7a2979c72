//! Rules, and what is made of them.
