//! Compiles the C++ shim (the code in `csrc`) against the libtorch that torch-sys found.

mod cache;
mod units;

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-changed=build");
    // Clippy does not link, so it needs no shim. Cargo keeps the outputs of clippy apart from those
    // of `cargo build`, which therefore still compiles the shim.
    println!("cargo:rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");
    let wrapper = env::var("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    if cfg!(feature = "doc-only") || wrapper.ends_with("clippy-driver") {
        return;
    }
    // torch-sys passes the folder of libtorch's libraries to the crates that depend on torch-sys.
    // The headers are in a folder next to that folder.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets this"));
    let include = lib.parent().expect("lib has a parent").join("include");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets this"));
    units::embed_kernels(&out);
    let files = units::write(&out);
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Debug info is off, because writing it for libtorch's headers takes longer than compiling
        // the code.
        .debug(false)
        // The shim's loops run in each training step, so they are optimized in debug builds too.
        .opt_level(3)
        // libtorch was built with NDEBUG. Without NDEBUG, some headers of libtorch declare classes
        // with another memory layout than in the built library.
        .define("NDEBUG", None)
        .include("csrc")
        .include(&out)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .flag("-Wall")
        .flag("-Wno-unused-parameter")
        .files(&files);
    cache::compile(&build, &out, &include);
    println!("cargo:rustc-link-lib=dl");
}
