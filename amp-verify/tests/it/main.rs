//! The `amp` binary as a user runs it.

mod bad_input;
mod kill;
mod logs;
mod output;
mod report;
mod resume;
mod support;
