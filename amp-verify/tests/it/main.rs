//! Tests of what the library itself computes. The crate `fixtures` tests the commands, because it
//! has models.

mod exponents;
mod registry;
mod verdict;
