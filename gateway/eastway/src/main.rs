//! The `eastway` command.

fn main() {}
