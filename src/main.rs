//! The daemon: arguments, logging, exit code.
fn main() {}
