//! The library's own figures. The commands are tested where there are models: in `fixtures`.

mod exponents;
mod registry;
mod verdict;
