//! Tests of what this library computes by itself. The tests of the commands are in the crate
//! `fixtures`, because the commands need models.

mod cases;
mod data_sets;
mod draws;
mod exponents;
mod frozen;
mod registry;
mod scores;
mod verdict;
