//! Checks that libtorch exists in the right version, and otherwise prints a one-line error with the
//! fix.
//!
//! torch-sys compiles C++ code against the folder that `LIBTORCH` names. If the folder does not
//! exist, the user sees only errors of the C++ compiler. The build script of this crate stops the
//! build earlier, with one line:
//!
//! ```text
//! error: amp-libtorch@0.1.0: libtorch 2.11.0 is not at /home/me/net/.libtorch/torch: run `cargo amp setup`
//! ```
//!
//! This build script should run before the build script of torch-sys. Cargo first builds the crates
//! on which most others depend, so the build scripts of both amp-derive and amp-core depend on this
//! crate.
//!
//! As in torch-sys, `LIBTORCH_USE_PYTORCH` selects the libtorch of Python's torch, and
//! `LIBTORCH_BYPASS_VERSION_CHECK` accepts any version.

/// The version of libtorch that tch 0.24 needs.
pub const VERSION: &str = env!("AMP_LIBTORCH_VERSION");
