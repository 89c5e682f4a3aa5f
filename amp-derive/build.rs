//! Does nothing. This build script exists so that this crate can depend on amp-libtorch, which
//! checks the libtorch installation. Cargo builds a crate early if many other crates wait for it.
//! Because this crate depends on amp-libtorch, cargo builds amp-libtorch before torch-sys.
//! Otherwise torch-sys might be built first. If libtorch is missing, the build of torch-sys prints
//! pages of compiler output instead of a one-line error.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
