//! Downloads wheels and unpacks them. The wheels are downloaded one at a time, so that an
//! interruption loses at most one of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::Cache;
use super::manifest::{Manifest, parse_line};
use super::variant::{Variant, Wheel};
use super::version::REQUIRED;
use crate::error::Error;
use crate::pip::Pip;
use crate::process::{disk_is_full, last_line, show};

/// Wheels are zip archives, and this Python script unpacks them with Python's standard library.
/// Python is always installed, because pip needs it.
const UNPACK: &str = include_str!("unpack.py");

/// The exit status with which `UNPACK` reports a damaged wheel.
const DAMAGED: i32 = 3;

/// The content of `libtorch.so` in a libtorch for CPUs: a linker script in place of the wheel's
/// library, which is linked with the CUDA libraries. The file must exist, because the build of the
/// bindings passes `-ltorch` to the linker. GNU ld, gold and LLD accept such a script (tested).
const LINKER_SCRIPT: &str = "INPUT(libtorch_cpu.so)\n";

/// The wheels that were downloaded completely.
pub(super) struct Wheels<'a> {
    cache: &'a Cache,
    folder: PathBuf,
}

impl<'a> Wheels<'a> {
    pub(super) const FOLDER: &'static str = "wheels";

    pub(super) fn of(cache: &'a Cache) -> Self {
        Wheels { cache, folder: cache.partial().join(Self::FOLDER) }
    }

    pub(super) fn find(&self, wheel: &Wheel) -> Option<PathBuf> {
        let named = |path: &PathBuf| path.file_name()?.to_str().map(|name| wheel.is_named(name));
        self.files().into_iter().find(|path| named(path) == Some(true))
    }

    /// Returns the total size of these wheels in MB.
    pub(super) fn megabytes(&self) -> u64 {
        let size = |path: PathBuf| path.metadata().map_or(0, |found| found.len());
        self.files().into_iter().map(size).sum::<u64>() / 1_000_000
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Runs pip to download `wheel` into a folder in `work`. When the wheel is complete, moves it
    /// to its final folder.
    pub(super) fn fetch(&self, pip: &Pip, wheel: &Wheel, work: &Path) -> Result<(), Error> {
        let (incoming, temporary) = (work.join("wheel"), work.join("tmp"));
        for folder in [&incoming, &temporary, &self.folder] {
            fs::create_dir_all(folder).map_err(|e| self.cache.unwritable(&e))?;
        }
        // pip gets a path relative to the cache, so that the printed command is short.
        let shown = incoming.strip_prefix(self.cache.folder()).unwrap_or(&incoming);
        let arguments = Pip::download(shown, wheel.requirement());
        note!("    python3 {}", arguments.join(" "));
        pip.run(self.cache.folder(), &temporary, &arguments)?;

        let entries = fs::read_dir(&incoming).map_err(|e| self.cache.unwritable(&e))?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        let name = names.find(|name| name.to_str().is_some_and(|name| wheel.is_named(name)));
        let name =
            name.ok_or_else(|| unexpected(&format!("{} is missing", wheel.requirement())))?;
        fs::rename(incoming.join(&name), self.folder.join(&name))
            .map_err(|e| self.cache.unwritable(&e))
    }

    /// Unpacks the files of `variant` into `target` and writes the manifest.
    pub(super) fn unpack(&self, variant: Variant, target: &Path) -> Result<(), Error> {
        let unwritable = |e: io::Error| self.cache.unwritable(&e);
        fs::create_dir_all(target).map_err(unwritable)?;
        let list = target.with_extension("list");
        for wheel in variant.wheels() {
            let path = self.find(wheel).ok_or_else(|| {
                Error::new(format!(
                    "{} was removed after its download: run the command again to download it again",
                    wheel.requirement()
                ))
            })?;
            note!("unpacking {}", wheel.requirement());
            self.unpack_one(&path, target, &list, variant)?;
        }
        let files = fs::read_to_string(&list).map_err(unwritable)?;
        let mut manifest =
            Manifest { variant, files: files.lines().filter_map(parse_line).collect() };
        if variant == Variant::Cpu {
            let library = "torch/lib/libtorch.so";
            fs::write(target.join(library), LINKER_SCRIPT).map_err(unwritable)?;
            manifest.files.push((LINKER_SCRIPT.len() as u64, library.into()));
        }
        super::installed::check(target, variant)
            .and_then(|()| manifest.check(target, |_| true))
            .map_err(|problem| unexpected(&problem))?;
        manifest.write(target).map_err(unwritable)
    }

    fn unpack_one(
        &self,
        wheel: &Path,
        target: &Path,
        list: &Path,
        variant: Variant,
    ) -> Result<(), Error> {
        let mut command = Command::new("python3");
        command.args(["-c", UNPACK]).args([wheel, target, list]).args(variant.rules());
        let (status, errors) = show(&mut command)
            .map_err(|e| Error::new(format!("python3 could not be run to unpack libtorch: {e}")))?;
        if status.success() {
            return Ok(());
        }
        let folder = self.cache.folder().display();
        Err(Error::new(if status.code() == Some(DAMAGED) {
            fs::remove_file(wheel).map_err(|e| self.cache.unwritable(&e))?;
            format!(
                "{} was damaged and has been removed from {folder}: run the command again to \
                 download it again",
                wheel.file_name().unwrap_or_default().display()
            )
        } else if disk_is_full(&errors) {
            format!(
                "libtorch could not be unpacked: the disk is full: make room in {folder}, or set \
                 LIBTORCH to a libtorch {REQUIRED} folder"
            )
        } else {
            format!(
                "libtorch could not be unpacked in {folder} ({status}; {}): solve the problem that \
                 python3 reports above and run the command again",
                last_line(&errors)
            )
        }))
    }
}

/// Returns the error for a downloaded file that is not the requested wheel.
fn unexpected(problem: &str) -> Error {
    Error::new(format!(
        "pip reported success, but {problem}: check pip's configuration (`python3 -m pip config \
         list`), or set LIBTORCH to a libtorch {REQUIRED} folder"
    ))
}
