//! Checks that there is a libtorch of the right version, and says what to do if there is not.
//!
//! torch-sys compiles C++ against the folder that `LIBTORCH` names, and where that folder does not exist
//! the C++ compiler's errors are all that a user sees. The build script of this crate stops the build
//! earlier, with one line:
//!
//! ```text
//! error: amp-libtorch@0.1.0: libtorch 2.11.0 is not at /home/me/net/.libtorch/torch: run `cargo amp setup`
//! ```
//!
//! It runs before torch-sys's build script: cargo starts those units first on which most others depend, and
//! the build scripts of both amp-derive and amp-core depend on this crate.
//!
//! `LIBTORCH_USE_PYTORCH` and `LIBTORCH_BYPASS_VERSION_CHECK` work as for torch-sys.

/// The version of libtorch that tch 0.24 binds.
pub const VERSION: &str = env!("AMP_LIBTORCH_VERSION");
