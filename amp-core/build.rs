//! Compiles the C++ shim against the libtorch that torch-sys found.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    // torch-sys tells its dependents where the libraries are; the headers lie beside them.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets this"));
    let include = lib.parent().expect("lib has a parent").join("include");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets this"));
    embed_kernels(&out);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Its few loops are on every step's way, in the tests' profile too.
        .opt_level(3)
        .include(&out)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .flag("-Wall")
        .flag("-Wno-unused-parameter")
        .files([
            "csrc/adam.cpp",
            "csrc/amp.cpp",
            "csrc/batch_norm.cpp",
            "csrc/cast.cpp",
            "csrc/checkpoint.cpp",
            "csrc/classification.cpp",
            "csrc/conv.cpp",
            "csrc/copy.cpp",
            "csrc/device.cpp",
            "csrc/dropout.cpp",
            "csrc/gradient.cpp",
            "csrc/graph.cpp",
            "csrc/kernel.cpp",
            "csrc/layer_norm.cpp",
            "csrc/linear.cpp",
            "csrc/moments.cpp",
            "csrc/optim.cpp",
            "csrc/run.cpp",
            "csrc/step.cpp",
            "csrc/transfer.cpp",
        ])
        .compile("amp_shim");
    println!("cargo:rustc-link-lib=dl");
}

/// Makes the source of each file of CUDA kernels, with what they share before it, a string of the
/// shim (`kernels/adam.cu.h`): it is compiled where it runs.
fn embed_kernels(out: &Path) {
    let folder = Path::new("csrc/kernels");
    let read = |name| fs::read_to_string(folder.join(name)).expect("what kernels share");
    let common = read("common.h") + &read("common.cuh");
    fs::create_dir_all(out.join("kernels")).expect("a folder for the kernels");
    for entry in fs::read_dir(folder).expect("the kernels") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let stem = path.file_stem().expect("a name").to_string_lossy();
        // What it shares with its host half.
        let shared = fs::read_to_string(path.with_extension("h")).unwrap_or_default();
        let text = fs::read_to_string(&path).expect("its source");
        // Several literals, since a compiler need not take long ones.
        let header = format!(
            "constexpr char amp_kernels_{stem}[] = R\"cuda({common})cuda\" R\"cuda({shared})cuda\" R\"cuda({text})cuda\";\n"
        );
        fs::write(out.join("kernels").join(format!("{stem}.cu.h")), header).expect("a header");
    }
}
