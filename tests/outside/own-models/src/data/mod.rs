//! The data sets of this project. Loading a data set always computes the same examples.

mod numbers;
pub mod rings;
pub mod sentences;
