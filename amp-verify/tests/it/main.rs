//! The `amp` binary as a user runs it, and the library's own figures.

mod bad_input;
mod bench;
mod diagnose;
mod exponents;
mod gate;
mod kill;
mod layers;
mod logs;
mod memory_budget;
mod model;
mod output;
mod page;
mod planted;
mod report;
mod resume;
mod selftest;
mod support;
mod verdict;
