//! The commands of the binary, one file each, and the command line that names them.

pub mod check;
pub mod cli;
pub mod client;
pub mod diagnose;
pub mod health;
pub mod man;
mod reload;
pub mod run;
pub mod top;
