//! The cargo-amp binary in small temporary checkouts, with stand-ins for python3, df and cargo.

// Nothing is provisioned elsewhere, and the stand-ins are shell scripts.
#![cfg(target_os = "linux")]

mod cuda;
mod failure;
mod fetch;
mod foreign;
mod handover;
mod link;
mod repair;
mod support;
mod tensorboard;
