//! Writes files atomically, so that nobody reads half of a file, and locks folders.

use std::{
    collections::HashMap,
    fs::{self, File, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// The first characters of the name of an unfinished file. The id of the writing process follows.
const UNFINISHED: &str = ".unfinished-";

/// A temporary file, which [`write`](Self::write) fills and moves to its final path. Create it
/// before the content is computed: if the folder is not writable, the error comes before the
/// computation.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    file: NamedTempFile,
}

impl Staged {
    /// Creates an empty temporary file for the final path `path`, in the same folder.
    ///
    /// # Errors
    /// When the folder is missing or not writable.
    pub fn create(path: &Path) -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(&format!("{UNFINISHED}{}-", process::id()))
            // With this mode, the umask decides about the permissions, as for every other new file.
            // By default, only the owner could read a temporary file.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder(path)?)
            .map_err(|error| Error::io(path, error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes `bytes` to the temporary file and renames it to the final path. Replaces an earlier
    /// file at this path. When the function returns, the content and the name are on the disk.
    ///
    /// # Errors
    /// When the file cannot be written, for example because the disk is full. An earlier file at
    /// the final path is unchanged in this case.
    pub fn write(mut self, bytes: &[u8]) -> Result<()> {
        let failed = |error| Error::io(&self.path, error);
        self.file.write_all(bytes).map_err(failed)?;
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&self.path).map_err(|error| failed(error.error))?;
        // The new name is on the disk only after the folder is synchronized, too.
        let folder = folder(&self.path)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// A lock of a folder. Only one process can have the lock at a time. The operating system releases
/// the lock when the process ends or is killed. No lock file remains.
#[derive(Debug, Clone)]
pub struct FolderLock {
    _folder: Arc<File>,
}

/// The folders that this process has locked. All locks of one folder within this process share one
/// file handle.
static LOCKED: Mutex<Option<HashMap<PathBuf, Weak<File>>>> = Mutex::new(None);

impl FolderLock {
    /// Locks an existing folder. On a file system that does not support locks, this always
    /// succeeds.
    ///
    /// # Errors
    /// When another process holds the lock, or the folder cannot be read.
    pub fn new(path: &Path) -> Result<Self> {
        let failed = |error| Error::io(path, error);
        let name = fs::canonicalize(path).map_err(failed)?;
        let mut locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = locked.get_or_insert_default();
        if let Some(folder) = locked.get(&name).and_then(Weak::upgrade) {
            return Ok(Self { _folder: folder });
        }
        let folder = File::open(&name).map_err(failed)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::config(format!(
                    "{}: another running process saves its run there, and each would overwrite the other's \
                     checkpoints; give this run another folder",
                    path.display()
                )));
            }
        }
        let folder = Arc::new(folder);
        locked.insert(name, Arc::downgrade(&folder));
        Ok(Self { _folder: folder })
    }
}

/// Creates the folder at `path` and all missing parent folders.
///
/// # Errors
/// When a folder cannot be created.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|reason| {
        let text = format!("the folder cannot be created ({reason}): give another folder");
        Error::io(path, std::io::Error::new(reason.kind(), text))
    })
}

/// Removes unfinished files in `folder` whose processes were killed while writing.
///
/// # Errors
/// When the folder cannot be read, or a file cannot be removed.
pub fn remove_abandoned(folder: &Path) -> Result<()> {
    let failed = |error| Error::io(folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let writer = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED)?.split_once('-'));
        if let Some((process, _)) = writer
            && !Path::new("/proc").join(process).exists()
        {
            fs::remove_file(entry.path()).map_err(|error| Error::io(entry.path(), error))?;
        }
    }
    Ok(())
}

/// Returns the folder that contains the file at `path`.
///
/// # Errors
/// When the folder does not exist.
pub fn folder(path: &Path) -> Result<&Path> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(Error::config(format!(
        "{}: there is no folder {}; create it first",
        path.display(),
        folder.display()
    )))
}
