//! The `amp` binary as a user runs it.

mod bad_input;
mod gate;
mod logs;
mod output;
mod selftest;
mod support;
mod verdict;
