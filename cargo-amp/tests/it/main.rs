//! Runs the cargo-amp binary in small temporary projects, with replacements for python3, df, strip
//! and cargo.

// cargo-amp downloads libtorch on Linux only, and the replacements for python3, cargo, strip and df
// are shell scripts.
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
mod test_parts;
