//! Everything that needs unsafe code.

pub mod poll;
