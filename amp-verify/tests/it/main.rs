//! The `amp` binary as a user runs it.

mod bad_input;
mod output;
mod support;
