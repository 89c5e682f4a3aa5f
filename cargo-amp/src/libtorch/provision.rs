//! Fetches libtorch into the checkout: once, whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use super::disk;
use super::installed::{self, State};
use super::version::REQUIRED;
use crate::checkout::Checkout;
use crate::error::Error;
use crate::lock::lock;
use crate::pip::{Pip, Wanted};

const WANTED: Wanted = Wanted {
    name: "libtorch 2.11.0",
    package: "torch 2.11.0",
    otherwise: "or set LIBTORCH to a libtorch 2.11.0 folder",
};

/// What pip was seen to hold on the disk at its peak: 7 GB of wheels and what they unpack to, and
/// 2 GB for its cache, which may lie on another disk but mostly does not.
const NEEDED_GB: u64 = 9;

/// Makes sure that the checkout's own libtorch is there and whole.
pub(super) fn ensure(checkout: &Checkout) -> Result<(), Error> {
    if matches!(installed::inspect(&checkout.libtorch()), State::Complete) {
        return Ok(());
    }
    // Freed by the system when this process ends, however it ends.
    let _lock = lock(&checkout.lock_file(), "libtorch")?;
    // Looked at again: another process may have provisioned while this one waited.
    match installed::inspect(&checkout.libtorch()) {
        State::Complete => Ok(()),
        State::Unstamped => {
            eprintln!("taking over the libtorch {REQUIRED} that is already in .libtorch");
            installed::stamp(&checkout.libtorch()).map_err(|e| unwritable(checkout, &e))
        }
        State::Absent => fetch(checkout),
        State::Unusable(problem) => {
            eprintln!(".libtorch cannot be used ({problem}): it is replaced");
            fetch(checkout)
        }
    }
}

fn fetch(checkout: &Checkout) -> Result<(), Error> {
    let supported = cfg!(target_os = "linux")
        && (cfg!(target_arch = "x86_64") || cfg!(target_arch = "aarch64"));
    if !supported {
        return Err(Error::new(format!(
            "libtorch {REQUIRED} is fetched only on linux with x86-64 or aarch64: on this machine \
             set LIBTORCH to a libtorch {REQUIRED} folder"
        )));
    }
    let partial = checkout.partial();
    if partial.exists() {
        eprintln!("an earlier fetch of libtorch was interrupted: starting again");
        fs::remove_dir_all(&partial).map_err(|e| unwritable(checkout, &e))?;
    }
    let pip = Pip::find(WANTED)?;
    if let Some(free) = disk::free_gb(checkout.root()).filter(|free| *free < NEEDED_GB) {
        return Err(Error::new(format!(
            "fetching libtorch needs {NEEDED_GB} GB and {} has {free} GB free: make room, or set \
             LIBTORCH to a libtorch {REQUIRED} folder",
            checkout.root().display()
        )));
    }
    let fetched = fetch_with(&pip, checkout);
    // The partial folder goes in any case: now empty, or with what a failure left.
    let removed = if partial.exists() { fs::remove_dir_all(&partial) } else { Ok(()) };
    fetched?;
    removed.map_err(|e| unwritable(checkout, &e))?;
    eprintln!("libtorch {REQUIRED} is in .libtorch; it is not fetched again");
    Ok(())
}

/// Fetches into the partial folder and moves the result into place in one step.
fn fetch_with(pip: &Pip, checkout: &Checkout) -> Result<(), Error> {
    let (partial, home) = (checkout.partial(), checkout.libtorch());
    let (fetched, temporary) = (partial.join("libtorch"), partial.join("tmp"));
    fs::create_dir_all(&temporary).map_err(|e| unwritable(checkout, &e))?;

    // Relative to the root, to be read at a glance.
    let arguments =
        Pip::arguments(Path::new(".libtorch.partial/libtorch"), &installed::requirements());
    // In a shell, a bare `<` would read from a file.
    let quoted = arguments
        .iter()
        .map(|one| if one.contains('<') { format!("'{one}'") } else { one.clone() })
        .collect::<Vec<_>>();
    eprintln!(
        "fetching libtorch {REQUIRED} into .libtorch, once: about 4.6 GB on the disk, about a \
         minute on a fast line; if interrupted, the next run starts again\n    python3 {}",
        quoted.join(" ")
    );
    pip.run(checkout.root(), &temporary, &arguments)?;

    installed::check(&fetched).map_err(|problem| {
        Error::new(format!(
            "pip reported success, but {problem}: check pip's configuration (`python3 -m pip \
             config list`), or set LIBTORCH to a libtorch {REQUIRED} folder"
        ))
    })?;
    let put_into_place = || {
        installed::stamp(&fetched)?;
        // A link that leads nowhere is in the way too.
        if home.symlink_metadata().is_ok() {
            fs::rename(&home, partial.join("replaced"))?;
        }
        fs::rename(&fetched, &home)
    };
    put_into_place().map_err(|e| unwritable(checkout, &e))
}

fn unwritable(checkout: &Checkout, error: &io::Error) -> Error {
    Error::new(format!(
        "libtorch could not be put into {} ({error}): make it writable and make room in it",
        checkout.root().display()
    ))
}
