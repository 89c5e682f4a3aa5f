//! The data sets. Each is computed anew whenever it is loaded, and always the same.

mod numbers;
pub mod rings;
pub mod sentences;
