//! Wiring of the agent: command line, configuration, collector, servers, signals.

fn main() {}
