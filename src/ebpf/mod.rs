//! The only unsafe code of the agent: a safe wrapper over libbpf and over the few system calls that std
//! does not offer. Nothing here knows what the programs count.

#![allow(unsafe_code)]

pub mod abi;
pub mod attach;
pub mod layout;
pub mod object;
#[cfg(test)]
mod old_verifier;
pub mod os;
pub mod poll;
pub mod privilege;
pub mod verifier;
