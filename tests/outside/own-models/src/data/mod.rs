//! The data sets. Each load computes the same examples again.

mod numbers;
pub mod rings;
pub mod sentences;
