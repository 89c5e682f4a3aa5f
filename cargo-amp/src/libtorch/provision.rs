//! Fetches libtorch into the user's cache: once, whole or not at all.

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

/// Makes sure that the user's libtorch is there and whole, and has at least what is `wanted`; where
/// nothing in particular is, whatever is there will do.
pub(super) fn ensure(cache: &Cache, wanted: Option<Variant>, look: Look) -> Result<Variant, Error> {
    let home = cache.home();
    let enough = |found| wanted.is_none_or(|wanted| found >= wanted);
    match installed::inspect(&home, look) {
        State::Complete(found) if enough(found) => return Ok(found),
        _ => cache.create()?,
    }
    // Freed by the system when this process ends, however it ends.
    let _lock = lock(&cache.lock_file(), "libtorch")?;
    // Looked at again: another process may have fetched it while this one waited.
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

/// Fetches `variant` and puts it into place; `adds` to a libtorch that is whole.
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
    // It is, after an interruption just before it was put into place.
    let is_made = matches!(
        installed::inspect(&new, Look::Thorough),
        State::Complete(found) if found >= variant
    );
    if !is_made {
        tidy(&partial).map_err(|e| cache.unwritable(&e))?;
        let made = make(cache, variant, adds, &new);
        if made.is_err() {
            // Only whole wheels stay. What cannot be removed now is removed by the next fetch.
            let _ = tidy(&partial);
            report_kept(cache);
        }
        made?;
    }
    place(&new, &home, &partial.join("replaced")).map_err(|e| cache.unwritable(&e))?;
    if let Err(e) = fs::remove_dir_all(&partial) {
        note!("note: {} could not be removed ({e}) and is not needed", partial.display());
    }
    note!("libtorch {REQUIRED} {variant} is in {}; it is not fetched again", home.display());
    Ok(())
}

/// Fetches what is not there yet and puts `new` together.
fn make(cache: &Cache, variant: Variant, adds: bool, new: &Path) -> Result<(), Error> {
    let pip = Pip::find(WANTED)?;
    let wheels = Wheels::of(cache);
    check_room(cache, variant, adds, &wheels)?;
    let missing: Vec<_> =
        variant.wheels().iter().filter(|wheel| wheels.find(wheel).is_none()).collect();
    announce(cache, variant, adds, variant.wheels().len() - missing.len());
    // Named after this process: a pip that outlived an interrupted fetch writes elsewhere.
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
    // Wheels and what is unpacked are on the disk together, before the wheels are removed. A wheel
    // is there twice while pip puts it into its place, which is not more.
    let all = variant.download_mb() + variant.unpacked_mb();
    let linked = if adds { Variant::Cpu.unpacked_mb() } else { 0 };
    let needed = all.saturating_sub(wheels.megabytes() + linked);
    match disk::free_mb(cache.folder()) {
        Some(free) if free < needed => Err(Error::new(format!(
            "fetching libtorch {variant} needs {} and {} has {} free: make room, set \
             XDG_CACHE_HOME to a folder that has it, or set LIBTORCH to a libtorch {REQUIRED} \
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
        note!("an earlier fetch of libtorch was interrupted: {there} of {all} wheels are there");
    }
    let what = match variant {
        _ if adds => format!("CUDA for the libtorch {REQUIRED} that is there"),
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
            "the wheels that are whole ({kept}, {}) are kept in {}, where the next run continues",
            gigabytes(wheels.megabytes()),
            cache.partial().display()
        );
    }
}

/// Removes from `partial` all that a later fetch cannot use.
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
    // Neither succeeds while there is a wheel.
    let _ = fs::remove_dir(partial.join(Wheels::FOLDER));
    let _ = fs::remove_dir(partial);
    Ok(())
}

/// Gives `new` the files of `home`, by hard links where the file system has them: what runs keeps
/// the same files, and nothing is unpacked twice.
fn link_files(home: &Path, new: &Path) -> io::Result<()> {
    let Found::Manifest(manifest) = Manifest::find(home) else { return Ok(()) };
    for (size, path) in &manifest.files {
        let (from, to) = (home.join(path), new.join(path));
        // A file that is not whole is unpacked.
        if fs::metadata(&from).is_ok_and(|found| found.len() == *size) {
            fs::create_dir_all(to.parent().unwrap_or(new))?;
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
        }
    }
    Ok(())
}

/// Puts `new` where `home` is. When that fails, what was there is put back.
fn place(new: &Path, home: &Path, replaced: &Path) -> io::Result<()> {
    // A link that leads nowhere is in the way too.
    let is_there = home.symlink_metadata().is_ok();
    if is_there {
        fs::rename(home, replaced)?;
    }
    fs::rename(new, home).inspect_err(|_| {
        if is_there {
            // The error that is reported is the first.
            let _ = fs::rename(replaced, home);
        }
    })
}

fn gigabytes(megabytes: u64) -> String {
    format!("{}.{:02} GB", megabytes / 1000, megabytes % 1000 / 10)
}
