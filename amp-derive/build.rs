//! Says in one line that libtorch is missing. This crate needs none, but what is built with it does, and
//! its build script is the first to run: torch-sys would fail later, with pages of a compiler's output.

use std::{env, path::Path};

fn main() {
    for variable in ["LIBTORCH", "LIBTORCH_USE_PYTORCH", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let is_set = |name: &str| env::var_os(name).is_some();
    if cfg!(feature = "doc-only") || is_set("DOCS_RS") || is_set("LIBTORCH_USE_PYTORCH") {
        return;
    }
    match env::var_os("LIBTORCH") {
        Some(folder) if Path::new(&folder).join("include").is_dir() => {}
        Some(folder) => println!(
            "cargo::error=libtorch 2.11.0 is not at {}: run `cargo amp setup` in this project",
            Path::new(&folder).display()
        ),
        // Where torch-sys looks for one of the system's.
        None if Path::new("/usr/lib/libtorch.so").exists() => {}
        None => println!(
            "cargo::error=LIBTORCH is not set: run `cargo amp init`, which sets it in \
             .cargo/config.toml, or set it to a libtorch 2.11.0 folder"
        ),
    }
}
