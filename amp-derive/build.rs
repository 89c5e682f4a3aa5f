//! Waits for amp-libtorch's check. Cargo starts first what most units wait for, and with this script it is
//! the check rather than torch-sys's script, which would fail with pages of a C++ compiler's output.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
