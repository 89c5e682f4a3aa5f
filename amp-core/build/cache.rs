//! Keeps the compiled shim (the code in `csrc`) in a folder of the user's cache. The compilation
//! takes about a minute. Without the cache, cargo repeats it for each project, and for each set of
//! features of this crate.

use std::{
    env,
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::{self, Command},
    time::SystemTime,
};

/// The name of the library that cargo links.
const NAME: &str = "amp_shim";

/// The number of compiled shims that the cache keeps. A shim takes 3 MB.
const KEPT: usize = 16;

/// The environment variables, besides those that cc reads, in which GCC and Clang look for headers.
const HEADERS: [&str; 3] = ["CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"];

/// Compiles the shim, or copies the library that an earlier build has compiled from the same sources
/// with the same compiler, and tells cargo to link it. `out` is the folder of the outputs. `include`
/// is the folder of libtorch's headers.
pub(crate) fn compile(build: &cc::Build, out: &Path, include: &Path) {
    let cached = cached(build, out, include);
    let library = out.join(format!("lib{NAME}.a"));
    if cached.as_ref().is_some_and(|cached| fs::copy(cached, &library).is_ok()) {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static={NAME}");
        println!("cargo:rustc-link-lib=stdc++");
        return;
    }
    build.compile(NAME);
    // The build does not need the cache, for example if the user's folder cannot be written.
    let _ = cached.map(|cached| keep(&library, &cached));
}

/// Returns the path in the cache of the library that `build` compiles. Its name contains a hash of
/// all that the library depends on. Returns `None` if there is no folder for a cache, and on systems
/// with another C++ library than GCC's.
fn cached(build: &cc::Build, out: &Path, include: &Path) -> Option<PathBuf> {
    let of_target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).ok();
    let uses_libstdcxx = of_target("OS")? == "linux" && of_target("ENV")? == "gnu";
    if !uses_libstdcxx || env::var_os("CXXSTDLIB").is_some() {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    let compiler = build.try_get_compiler().ok()?;
    let version = Command::new(compiler.path()).arg("--version").output().ok()?;
    (compiler.path(), version.stdout, env::var("TARGET").ok()?).hash(&mut hasher);
    let without_out = |text: &OsStr| text.to_string_lossy().replace(&*out.to_string_lossy(), "OUT");
    compiler.args().iter().for_each(|argument| without_out(argument).hash(&mut hasher));
    HEADERS.map(env::var_os).hash(&mut hasher);
    // The version of libtorch, and when this copy of it was written.
    let header = include.join("torch/csrc/api/include/torch/version.h");
    (fs::read(&header).ok()?, modified(&header)?).hash(&mut hasher);
    hash_folder(Path::new("csrc"), &mut hasher).ok()?;
    hash_folder(Path::new("build"), &mut hasher).ok()?;
    let caches = env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute());
    let caches = caches.map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")))?;
    Some(caches.join("cargo-amp/shim").join(format!("{:016x}.a", hasher.finish())))
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// Returns the paths of the files and folders in a folder, in any order.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Hashes the names and the contents of all files in a folder.
fn hash_folder(folder: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    let mut paths = entries(folder)?;
    paths.sort();
    for path in paths {
        path.hash(hasher);
        match path.is_dir() {
            true => hash_folder(&path, hasher)?,
            false => fs::read(&path)?.hash(hasher),
        }
    }
    Ok(())
}

/// Copies the library to its path in the cache, and removes the oldest libraries there. Another
/// build may do the same at the same time: neither build sees a file that is only half written.
fn keep(library: &Path, cached: &Path) -> io::Result<()> {
    let folder = cached.parent().expect("the cache");
    fs::create_dir_all(folder)?;
    let partial = cached.with_extension(format!("{}.partial", process::id()));
    let written = fs::copy(library, &partial).and_then(|_| fs::rename(&partial, cached));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written?;
    let mut kept = entries(folder)?;
    kept.sort_by_key(|path| modified(path));
    let old = kept.len().saturating_sub(KEPT);
    kept.iter().take(old).try_for_each(fs::remove_file)
}
