//! The data sets. Each is computed again at every load, with the same result.

mod numbers;
pub mod rings;
pub mod sentences;
