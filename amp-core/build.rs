//! Compiles the C++ shim against the libtorch that torch-sys found.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    // torch-sys tells its dependents where the libraries are; the headers lie beside them.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets this"));
    let include = lib.parent().expect("lib has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Its few loops are on every step's way, in the tests' profile too.
        .opt_level(3)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .flag("-Wall")
        .flag("-Wno-unused-parameter")
        .files([
            "csrc/amp.cpp",
            "csrc/checkpoint.cpp",
            "csrc/device.cpp",
            "csrc/graph.cpp",
            "csrc/optim.cpp",
            "csrc/run.cpp",
            "csrc/transfer.cpp",
        ])
        .compile("amp_shim");
    println!("cargo:rustc-link-lib=dl");
}
