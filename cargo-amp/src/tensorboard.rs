//! Fetches TensorBoard's own reader for the test that reads the project's event files with it:
//! once, whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use crate::checkout::Checkout;
use crate::error::Error;
use crate::lock::lock;
use crate::pip::{Pip, Wanted};

/// What pip is asked for: the reader, and of what it needs the major versions it was tried with.
/// A change here fetches again.
const REQUIREMENTS: [&str; 3] = ["tensorboard==2.20.0", "numpy<3", "protobuf<8"];

const WANTED: Wanted = Wanted {
    name: "tensorboard 2.20.0",
    package: "tensorboard 2.20.0",
    otherwise: "or run `cargo test --workspace`, where the one test that needs it fails",
};

/// Makes sure that the reader is there and whole.
pub(crate) fn ensure(checkout: &Checkout) -> Result<(), Error> {
    let home = checkout.tensorboard();
    if is_complete(&home) {
        return Ok(());
    }
    let _lock = lock(&home.with_extension("lock"), "tensorboard")?;
    // Looked at again: another process may have fetched it while this one waited.
    if is_complete(&home) {
        return Ok(());
    }
    let pip = Pip::find(WANTED)?;
    let partial = home.with_extension("partial");
    let unwritable = |error: io::Error| {
        Error::new(format!(
            "tensorboard could not be put into {} ({error}): make it writable and make room in it",
            checkout.root().display()
        ))
    };
    // What an interruption left.
    remove(&partial).map_err(unwritable)?;
    let fetched = fetch(&pip, checkout, &partial);
    let placed = fetched.and_then(|()| place(&partial, &home).map_err(unwritable));
    let removed = remove(&partial);
    placed?;
    removed.map_err(unwritable)
}

fn fetch(pip: &Pip, checkout: &Checkout, partial: &Path) -> Result<(), Error> {
    let temporary = partial.join("tmp");
    fs::create_dir_all(&temporary)
        .map_err(|error| Error::new(format!("{} cannot be made ({error})", temporary.display())))?;
    eprintln!("fetching tensorboard 2.20.0 for the tests into .tensorboard, once: about 130 MB");
    let target = Path::new(".tensorboard.partial/packages");
    let arguments = Pip::install(target, &REQUIREMENTS.map(String::from));
    pip.run(checkout.root(), &temporary, &arguments)
}

/// Vouches for the packages, then moves them to their place.
fn place(partial: &Path, home: &Path) -> io::Result<()> {
    let packages = partial.join("packages");
    fs::write(packages.join("amp-stamp"), stamp())?;
    if home.symlink_metadata().is_ok() {
        fs::rename(home, partial.join("replaced"))?;
    }
    fs::rename(packages, home)
}

fn is_complete(home: &Path) -> bool {
    fs::read_to_string(home.join("amp-stamp")).is_ok_and(|found| found == stamp())
}

fn stamp() -> String {
    REQUIREMENTS.join("\n") + "\n"
}

fn remove(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}
