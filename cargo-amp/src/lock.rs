//! Prevents two processes from downloading into the same folder at the same time.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::error::Error;

/// Locks the file `path`. The lock ends when the returned file is dropped. If another process holds
/// the lock, prints that the other process is fetching `what`, and waits.
pub(crate) fn lock(path: &Path, what: &str) -> Result<File, Error> {
    let cannot_lock = |e: io::Error| {
        Error::new(format!("{} cannot be locked ({e}): make it writable", path.display()))
    };
    let file = File::options().create(true).append(true).open(path).map_err(cannot_lock)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            note!("waiting for another process that is fetching {what}");
            file.lock().map_err(cannot_lock)?;
        }
        // Some network file systems do not support locks. Two downloads at the same time are rare,
        // so this code continues without a lock.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => return Err(cannot_lock(e)),
    }
    Ok(file)
}
