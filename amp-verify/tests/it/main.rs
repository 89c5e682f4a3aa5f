//! Tests of the library's own figures. The crate `fixtures` tests the commands, because it has
//! models.

mod exponents;
mod registry;
mod verdict;
