//! The cargo-amp binary in small temporary projects, with stand-ins for python3, df, strip and cargo.

// Nothing is provisioned elsewhere, and the stand-ins are shell scripts.
#![cfg(target_os = "linux")]

mod crates;
mod foreign;
mod handover;
mod init;
mod new;
mod pack;
mod packing;
mod project;
mod provision;
mod python;
mod run_script;
mod support;
