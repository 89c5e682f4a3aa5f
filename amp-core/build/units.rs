//! Writes the C++ files that are compiled: the translation units, and the headers with the sources of
//! CUDA kernels.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// Writes the translation units, which include the files of `csrc`, and returns their paths.
///
/// Parsing libtorch's headers takes most of the compiler's time, so each set of headers is parsed
/// once: one unit contains the files that need autograd or all operators, and the other contains
/// the rest.
pub(crate) fn write(out: &Path) -> [PathBuf; 2] {
    const LARGE_HEADERS: [&str; 2] = ["<torch/csrc/autograd/", "<ATen/autocast_mode.h>"];
    let mut files: Vec<PathBuf> = fs::read_dir("csrc")
        .expect("the sources")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cpp"))
        .collect();
    files.sort();
    let [mut autograd, mut rest] = [String::new(), String::new()];
    for path in files {
        let text = fs::read_to_string(&path).expect("its source");
        let large = LARGE_HEADERS.iter().any(|header| text.contains(header));
        let unit = if large { &mut autograd } else { &mut rest };
        let name = path.file_name().expect("a name").display();
        writeln!(unit, "#include \"{name}\"").expect("a string takes all");
    }
    [("autograd.cpp", autograd), ("rest.cpp", rest)].map(|(name, text)| {
        let path = out.join(name);
        fs::write(&path, text).expect("a translation unit");
        path
    })
}

/// Writes a header for each file of CUDA kernels, such as `kernels/adam.cu.h`, with the kernels'
/// source as a string constant. The string begins with the shared headers. NVRTC compiles the
/// string at run time for the available GPU.
pub(crate) fn embed_kernels(out: &Path) {
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
        // The declarations shared by the kernels and the C++ code that launches them.
        let shared = fs::read_to_string(path.with_extension("h")).unwrap_or_default();
        let text = fs::read_to_string(&path).expect("its source");
        // The source is split into several literals, because compilers may limit the length of a
        // literal.
        let header = format!(
            "constexpr char amp_kernels_{stem}[] = R\"cuda({common})cuda\" R\"cuda({shared})cuda\" R\"cuda({text})cuda\";\n"
        );
        fs::write(out.join("kernels").join(format!("{stem}.cu.h")), header).expect("a header");
    }
}
