//! Tests that libtorch's CUDA library is loaded at start-up if there is an NVIDIA driver. Ordinary
//! files take the place of drivers and libraries, so the tests run on any machine.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use amp_core::hardware::{CudaLibrary, cuda_devices, cuda_library, parse_device};
use tempfile::TempDir;

use crate::support::message;

const MARK: &str = "cuda library: ";

/// The program that the tests of this file run as child processes.
#[test]
#[ignore = "is run by the other tests, in processes of their own"]
fn child() {
    // This line runs before the first check for CUDA, so it prints what was loaded at start-up.
    println!("mapped: {:?}", loaded("libtorch_cuda.so"));
    let known = serde_json::to_string(&cuda_library()).expect("JSON");
    println!("{MARK}{known}");
    if matches!(cuda_library(), CudaLibrary::Failed { .. }) {
        println!("auto: {}", message(parse_device("auto")));
        println!("cpu: {:?}", parse_device("cpu"));
    } else {
        println!("devices: {}", cuda_devices().expect("a count"));
    }
}

/// Returns the path of the file with this name, if the process has mapped such a file into its
/// memory.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|own| own == name))
}

/// A copy of libtorch's folder that contains links to the real files, but no CUDA library.
struct Libtorch(TempDir);

impl Libtorch {
    fn new() -> Self {
        let own = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir_all(own.lib()).expect("a folder");
        let cpu = loaded("libtorch_cpu.so").expect("this process runs on libtorch");
        let real = cpu.parent().expect("a file is in a folder");
        for name in ["libtorch_cpu.so", "libc10.so", "libgomp.so.1"] {
            if real.join(name).exists() {
                symlink(real.join(name), own.lib().join(name)).expect("a link");
            }
        }
        // libtorch searches for NVIDIA's libraries relative to its own path, so the copy needs them
        // at the same relative path.
        let nvidia = real.join("../../nvidia");
        if nvidia.exists() {
            symlink(nvidia, own.0.path().join("nvidia")).expect("a link");
        }
        own
    }

    fn lib(&self) -> PathBuf {
        self.0.path().join("torch/lib")
    }

    fn driver(&self) -> PathBuf {
        self.0.path().join("libcuda.so.1")
    }

    /// Returns the path of the file that takes the place of the CUDA library.
    fn cuda(&self) -> PathBuf {
        self.lib().join("libtorch_cuda.so")
    }

    /// Runs a child process with this libtorch. Returns the outcome of loading the CUDA library in
    /// the process, and the text that the process printed.
    fn run(&self) -> (CudaLibrary, String) {
        let inherited = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let first = [self.0.path().to_owned(), self.lib()];
        let path = env::join_paths(first.into_iter().chain(env::split_paths(&inherited)));
        let output = Command::new(env::current_exe().expect("this binary"))
            .args(["--exact", "cuda_library::child", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", path.expect("a search path"))
            .output()
            .expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        let known = text.lines().find_map(|line| line.strip_prefix(MARK));
        (serde_json::from_str(known.expect("the line")).expect("JSON"), text)
    }
}

/// Writes a library that can be loaded.
fn some_library(to: &Path) {
    let own = loaded("libgcc_s.so.1").expect("Rust's standard library needs it");
    fs::copy(own, to).expect("a copy");
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn without_a_driver_nothing_is_loaded() {
    let libtorch = Libtorch::new();
    fs::write(libtorch.driver(), "no library at all").expect("a file");
    some_library(&libtorch.cuda());
    let (found, printed) = libtorch.run();
    assert_eq!(found, CudaLibrary::NoDriver);
    assert!(printed.contains("devices: 0"), "{printed}");
    // Nothing is mapped, so the test program itself is not linked with the CUDA library. Otherwise
    // the loader would have mapped the file that stands in for the library, because the child's
    // search path begins with the file's folder.
    assert!(printed.contains("mapped: None"), "{printed}");
}

#[test]
fn with_a_driver_the_library_beside_libtorch_is_loaded() {
    let libtorch = Libtorch::new();
    some_library(&libtorch.driver());
    some_library(&libtorch.cuda());
    let (found, printed) = libtorch.run();
    let path = text(&libtorch.cuda());
    assert!(printed.contains(&format!("mapped: Some({path:?})")), "{printed}");
    assert_eq!(found, CudaLibrary::Loaded { path });
}

#[test]
fn a_driver_without_a_cuda_library_is_reported() {
    let libtorch = Libtorch::new();
    some_library(&libtorch.driver());
    let (found, printed) = libtorch.run();
    let path = text(&libtorch.cuda());
    assert!(found.to_string().contains("run `cargo amp setup --cuda`"), "{found}");
    assert_eq!(found, CudaLibrary::NotInstalled { path });
    assert!(printed.contains("devices: 0"), "{printed}");
}

/// A CUDA library that exists but cannot be loaded is an error. Otherwise the device `auto` would
/// silently be the CPU.
#[test]
fn a_library_that_cannot_be_loaded_is_an_error() {
    let libtorch = Libtorch::new();
    some_library(&libtorch.driver());
    fs::write(libtorch.cuda(), "no library at all").expect("a file");
    let (found, printed) = libtorch.run();
    let CudaLibrary::Failed { reason } = found else { panic!("{found:?}") };
    assert!(reason.contains("libtorch_cuda.so"), "{reason}");
    let line = printed.lines().find(|line| line.starts_with("auto: ")).expect("a line");
    assert!(line.contains(&reason) && line.contains("--device cpu"), "{line}");
    assert!(printed.contains("cpu: Ok(Cpu)"), "{printed}");
}
