//! Does nothing. This build script exists so that this crate can have a build dependency:
//! amp-libtorch, which checks the libtorch installation. Cargo builds a crate early if many other
//! crates wait for it. Many crates wait for this crate, and therefore for amp-libtorch, so cargo
//! builds amp-libtorch before torch-sys. Otherwise torch-sys might be built first. If libtorch is
//! missing, amp-libtorch prints a one-line error, but the build of torch-sys prints pages of
//! compiler output.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
