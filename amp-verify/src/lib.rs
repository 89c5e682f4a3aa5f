//! Trains a model under every precision and holds each run against the 32-true baseline:
//! [`case::Case`] → [`runner`] → [`matrix`] → [`comparison::Comparison`] → [`view`].
//!
//! [`layers`] and [`exponents`] say what a precision loses in each layer of one step; [`diagnose`]
//! what a failed check is due to.

pub mod case;
pub mod cli;
pub mod comparison;
pub mod diagnose;
pub mod exponents;
pub mod golden;
pub mod layers;
pub mod matrix;
pub mod output;
pub mod runner;
pub mod view;
