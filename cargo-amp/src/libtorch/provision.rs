//! Downloads libtorch into the user's cache once. An interrupted download leaves no incomplete
//! libtorch there.

use std::fs;
use std::io;
use std::path::Path;

use super::cache::Cache;
use super::installed::{self, Look, State};
use super::manifest::{Found, Manifest};
use super::variant::Variant;
use super::version::REQUIRED;
use super::wheels::Wheels;
use super::{disk, driver};
use crate::error::Error;
use crate::lock::lock;
use crate::pip::{Pip, Wanted};

const WANTED: Wanted = Wanted {
    name: "libtorch 2.11.0",
    package: "torch 2.11.0",
    otherwise: "or set LIBTORCH to a libtorch 2.11.0 folder",
};

/// Ensures that the user's libtorch is complete and includes the variant `wanted`. If `wanted` is
/// `None`, any variant that is already there is enough.
pub(super) fn ensure(cache: &Cache, wanted: Option<Variant>, look: Look) -> Result<Variant, Error> {
    let home = cache.home();
    let enough = |found| wanted.is_none_or(|wanted| found >= wanted);
    match installed::inspect(&home, look) {
        State::Complete(found) if enough(found) => return Ok(found),
        _ => cache.create()?,
    }
    // The lock is released when `_lock` is dropped or this process ends.
    let _lock = lock(&cache.lock_file(), "libtorch")?;
    // The state is checked again, because another process may have fetched libtorch while this
    // process waited for the lock.
    let mut state = installed::inspect(&home, look);
    if let State::Unstamped = state {
        note!("taking over the libtorch {REQUIRED} that is already in {}", home.display());
        state = State::Complete(installed::take_over(&home).map_err(|e| cache.unwritable(&e))?);
    }
    let default = || if driver::is_present() { Variant::Cuda } else { Variant::Cpu };
    let (variant, adds) = match state {
        State::Complete(found) if enough(found) => return Ok(found),
        State::Complete(_) => (wanted.unwrap_or_else(default), true),
        State::Unusable(problem, was) => {
            note!("{} cannot be used ({problem}): it is replaced", home.display());
            (wanted.or(was).unwrap_or_else(default), false)
        }
        State::Absent | State::Unstamped => (wanted.unwrap_or_else(default), false),
    };
    fetch(cache, variant, adds)?;
    Ok(variant)
}

/// Downloads `variant` and moves it into the cache. If `adds` is true, the cache already has a
/// complete libtorch for CPUs, whose files are reused.
fn fetch(cache: &Cache, variant: Variant, adds: bool) -> Result<(), Error> {
    let supported = cfg!(target_os = "linux")
        && (cfg!(target_arch = "x86_64") || cfg!(target_arch = "aarch64"));
    if !supported {
        return Err(Error::new(format!(
            "libtorch {REQUIRED} is fetched only on linux with x86-64 or aarch64: on this machine \
             set LIBTORCH to a libtorch {REQUIRED} folder"
        )));
    }
    let (home, partial) = (cache.home(), cache.partial());
    let new = partial.join("new");
    // An earlier run may have been interrupted after it had filled this folder, before it moved the
    // folder into the cache.
    let is_made = matches!(
        installed::inspect(&new, Look::Thorough),
        State::Complete(found) if found >= variant
    );
    if !is_made {
        tidy(&partial).map_err(|e| cache.unwritable(&e))?;
        let made = make(cache, variant, adds, &new);
        if made.is_err() {
            // Removes everything except complete wheels. If this fails, the next download removes
            // the files.
            let _ = tidy(&partial);
            report_kept(cache);
        }
        made?;
    }
    place(&new, &home, &partial.join("replaced")).map_err(|e| cache.unwritable(&e))?;
    if let Err(e) = fs::remove_dir_all(&partial) {
        note!("note: {} is no longer needed, but could not be removed ({e})", partial.display());
    }
    note!("libtorch {REQUIRED} {variant} is in {}; it is not fetched again", home.display());
    Ok(())
}

/// Fetches the missing wheels and fills the folder `new`.
fn make(cache: &Cache, variant: Variant, adds: bool, new: &Path) -> Result<(), Error> {
    let pip = Pip::find(WANTED)?;
    let wheels = Wheels::of(cache);
    check_room(cache, variant, adds, &wheels)?;
    let missing: Vec<_> =
        variant.wheels().iter().filter(|wheel| wheels.find(wheel).is_none()).collect();
    announce(cache, variant, adds, variant.wheels().len() - missing.len());
    // The folder's name contains the process id, because the pip of an interrupted download may
    // still be running and writing to its own folder.
    let work = cache.partial().join(format!("work.{}", std::process::id()));
    for wheel in missing {
        wheels.fetch(&pip, wheel, &work)?;
    }
    if adds {
        link_files(&cache.home(), new).map_err(|e| cache.unwritable(&e))?;
    }
    wheels.unpack(variant, new)
}

fn check_room(
    cache: &Cache,
    variant: Variant,
    adds: bool,
    wheels: &Wheels<'_>,
) -> Result<(), Error> {
    // The wheels are removed last, so the disk must have room for the wheels and the unpacked
    // files. This space is also enough for the second copy of one wheel that exists for a moment
    // while pip moves the wheel.
    let all = variant.download_mb() + variant.unpacked_mb();
    let linked = if adds { Variant::Cpu.unpacked_mb() } else { 0 };
    let needed = all.saturating_sub(wheels.megabytes() + linked);
    match disk::free_mb(cache.folder()) {
        Some(free) if free < needed => Err(Error::new(format!(
            "fetching libtorch {variant} needs {} and {} has {} free: make room, set \
             XDG_CACHE_HOME to a folder with enough space, or set LIBTORCH to a libtorch {REQUIRED} \
             folder",
            gigabytes(needed),
            cache.folder().display(),
            gigabytes(free)
        ))),
        _ => Ok(()),
    }
}

fn announce(cache: &Cache, variant: Variant, adds: bool, there: usize) {
    if there > 0 {
        let all = variant.wheels().len();
        note!("an earlier fetch of libtorch was interrupted: {there} of {all} wheels are complete");
    }
    let what = match variant {
        _ if adds => format!("the CUDA libraries for the installed libtorch {REQUIRED}"),
        Variant::Cpu => {
            format!("libtorch {REQUIRED} {variant} (`cargo amp setup --cuda` adds CUDA)")
        }
        Variant::Cuda => {
            format!("libtorch {REQUIRED} {variant} (`cargo amp setup --cpu` leaves CUDA out)")
        }
    };
    note!(
        "fetching {what} into {}, once for all projects: {} to download, {} on the disk; if \
         interrupted, the next run continues from there",
        cache.home().display(),
        gigabytes(variant.download_mb()),
        gigabytes(variant.unpacked_mb()),
    );
}

fn report_kept(cache: &Cache) {
    let wheels = Wheels::of(cache);
    let kept = Variant::Cuda.wheels().iter().filter(|wheel| wheels.find(wheel).is_some()).count();
    if kept > 0 {
        note!(
            "the complete wheels ({kept}, {}) are kept in {}, and the next run continues from there",
            gigabytes(wheels.megabytes()),
            cache.partial().display()
        );
    }
}

/// Removes everything from `partial` that a later fetch cannot use.
fn tidy(partial: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(partial) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        } else if entry.file_name() != Wheels::FOLDER {
            fs::remove_dir_all(entry.path())?;
        }
    }
    // Removes both folders if they are empty. If a complete wheel is left, both calls fail, and the
    // errors are ignored.
    let _ = fs::remove_dir(partial.join(Wheels::FOLDER));
    let _ = fs::remove_dir(partial);
    Ok(())
}

/// Puts the complete files of `home` into `new`, as hard links if the file system supports them and
/// as copies otherwise. Programs that use the files in `home` are not disturbed, and no file is
/// unpacked twice.
fn link_files(home: &Path, new: &Path) -> io::Result<()> {
    let Found::Manifest(manifest) = Manifest::find(home) else { return Ok(()) };
    for (size, path) in &manifest.files {
        let (from, to) = (home.join(path), new.join(path));
        // A file of another size than in the manifest is damaged. It is not linked, but unpacked
        // again.
        if fs::metadata(&from).is_ok_and(|found| found.len() == *size) {
            fs::create_dir_all(to.parent().unwrap_or(new))?;
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
        }
    }
    Ok(())
}

/// Moves `new` to `home`. If this fails, the old folder is restored.
fn place(new: &Path, home: &Path, replaced: &Path) -> io::Result<()> {
    // `symlink_metadata` also finds a broken link, which must be removed too.
    let is_there = home.symlink_metadata().is_ok();
    if is_there {
        fs::rename(home, replaced)?;
    }
    fs::rename(new, home).inspect_err(|_| {
        if is_there {
            // If restoring the old folder fails too, only the first error is reported.
            let _ = fs::rename(replaced, home);
        }
    })
}

fn gigabytes(megabytes: u64) -> String {
    format!("{}.{:02} GB", megabytes / 1000, megabytes % 1000 / 10)
}
