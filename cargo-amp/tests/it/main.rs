//! The cargo-amp binary in small temporary projects, with stand-ins for python3, df, strip and cargo.

// Nothing is provisioned elsewhere, and the stand-ins are shell scripts.
#![cfg(target_os = "linux")]

mod crates;
mod cuda;
mod failure;
mod fetch;
mod foreign;
mod handover;
mod init;
mod link;
mod new;
mod pack;
mod packing;
mod project;
mod python;
mod repair;
mod run_script;
mod support;
