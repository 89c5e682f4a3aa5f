//! Trains a model under every precision and compares each run with the 32-true baseline.
//!
//! A project declares its models in a [`Registry`], and its binary `amp` passes the registry to
//! [`main()`]. Data flows through the modules in this order: [`registry`] → [`case::Case`] →
//! [`runner`] → [`matrix`] → [`comparison::Comparison`] → `view`, `report`. With [`verify!`] a test
//! in `cargo test` compares a run with its recorded [`golden`].
//!
//! The feature `cli`, which is on by default, adds the modules of the other commands: `layers` and
//! `exponents` measure the rounding error of each layer, `diagnose` finds the cause of a failed
//! check, `gate` judges models in CI, `bench` measures speed, and `parity` compares models with
//! their PyTorch twins.

mod changes;
pub mod length;
mod margins_file;

#[cfg(feature = "cli")]
mod faults;
#[cfg(feature = "cli")]
mod interceptor;
#[cfg(feature = "cli")]
mod python;
#[cfg(feature = "cli")]
mod rounding;

mod scalars;
#[cfg(feature = "cli")]
mod speed;

pub mod case;
pub mod comparison;
pub mod golden;
pub mod margins;
pub mod matrix;
pub mod registry;
pub mod runner;
pub mod text;
pub mod verdict;

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod diagnose;
#[cfg(feature = "cli")]
pub mod exponents;
#[cfg(feature = "cli")]
pub mod gate;
#[cfg(feature = "cli")]
pub mod layers;
#[cfg(feature = "cli")]
pub mod options;
#[cfg(feature = "cli")]
pub mod output;
#[cfg(feature = "cli")]
pub mod parity;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "cli")]
pub mod selftest;
#[cfg(feature = "cli")]
pub mod view;

#[cfg(feature = "cli")]
pub use cli::main;
#[cfg(feature = "cli")]
pub use registry::Twin;
pub use registry::{DataSet, Model, Project, Registry};

/// Items that the expansions of [`verify!`] and [`model!`] refer to; not for direct use.
#[doc(hidden)]
pub mod __private {
    pub use crate::registry::name_of;
    pub use insta;
}
