//! Trains a model under every precision and holds each run against the 32-true baseline:
//! [`case::Case`] → [`runner`] → [`matrix`] → [`comparison::Comparison`] → [`view`].

pub mod case;
pub mod cli;
pub mod comparison;
pub mod gate;
pub mod golden;
pub mod matrix;
pub mod output;
pub mod runner;
pub mod selftest;
pub mod verdict;
pub mod view;
