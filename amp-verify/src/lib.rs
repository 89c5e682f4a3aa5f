//! Trains a model under every precision and holds each run against the 32-true baseline:
//! [`case::Case`] → [`runner`] → [`matrix`] → [`comparison::Comparison`] → [`view`], [`report`].
//!
//! [`layers`] and [`exponents`] say what a precision loses in each layer of one step; [`diagnose`]
//! what a failed check is due to; [`bench`] how fast it all is.

pub mod bench;
pub mod case;
pub mod cli;
pub mod comparison;
pub mod diagnose;
pub mod exponents;
pub mod gate;
pub mod golden;
pub mod layers;
pub mod matrix;
pub mod output;
pub mod report;
pub mod runner;
pub mod selftest;
pub mod text;
pub mod verdict;
pub mod view;

/// What [`verify!`] names; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use insta;
}
