//! Does nothing. This build script exists so that this crate can have a build dependency:
//! amp-libtorch, which checks the libtorch installation. Cargo starts with the crates on which many
//! others depend. This crate is one of them, so amp-libtorch is built before torch-sys. If libtorch
//! is missing, the user then sees the one-line error of amp-libtorch, and not pages of compiler
//! output from torch-sys.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
