//! The `amp` binary as a user runs it.

mod bad_input;
mod logs;
mod output;
mod support;
mod verdict;
