//! Does nothing, but makes this crate depend on amp-libtorch, which checks the libtorch
//! installation. Cargo starts first what most other crates wait for. Because of this dependency
//! that is the check. Otherwise torch-sys's build script might run first, and without libtorch it
//! fails with pages of compiler output instead of one line.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
