//! A cache for the outcomes of the gate's jobs (one training run or check each). The key of an
//! outcome is a digest of the binary, the machine and the job.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use amp_core::{
    Error, Result,
    file::Staged,
    hardware::{self, Fingerprint},
};
use sha2::{Digest, Sha256};

use super::{
    identity::{digest, hex},
    job::Job,
    outcome::Outcome,
};

/// A cache in a folder. `None` is a cache that stores nothing.
pub struct Cache(Option<Open>);

struct Open {
    folder: PathBuf,
    /// The digest of the binary. The binary contains the models, the trainer, the checksums of the
    /// data and libtorch's version.
    binary: String,
    threads: usize,
}

impl Cache {
    /// Creates a cache that stores nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Opens the cache in `folder`. `threads` is the number of threads per process, on which
    /// results depend.
    ///
    /// # Errors
    /// When the folder cannot be created or the binary cannot be read.
    pub fn open(folder: &Path, threads: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let failed = |error| Error::io("this binary", error);
        let bytes = fs::read(env::current_exe().map_err(failed)?).map_err(failed)?;
        let binary = hex(&Sha256::digest(bytes));
        Ok(Self(Some(Open { folder: folder.to_owned(), binary, threads })))
    }

    pub(super) fn get(&self, job: &Job) -> Option<Outcome> {
        // An entry of the cache that cannot be read is treated as missing, so its job runs again.
        let text = fs::read_to_string(self.0.as_ref()?.path(job)?).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(super) fn put(&self, job: &Job, outcome: &Outcome) -> Result<()> {
        let Some(path) = self.0.as_ref().and_then(|open| open.path(job)) else { return Ok(()) };
        let text = serde_json::to_vec(outcome).map_err(|e| Error::io(&path, e.into()))?;
        Staged::create(&path)?.write(&text)
    }
}

impl Open {
    /// Returns the path of the file for a job's outcome. Returns `None` if the machine cannot be
    /// described.
    fn path(&self, job: &Job) -> Option<PathBuf> {
        let device = hardware::parse_device(&job.device).ok()?;
        let machine = Fingerprint::of(device).ok()?;
        // The fingerprint (the description of the machine) also contains this process's settings.
        // They are cleared, because an earlier job may have set them, and the key already contains
        // the settings of this job.
        let machine = Fingerprint { threads: 0, tf32: false, deterministic: false, ..machine };
        let parts = [
            self.binary.clone(),
            self.threads.to_string(),
            serde_json::to_string(&machine).ok()?,
            job.key(),
        ];
        Some(self.folder.join(format!("{}.json", digest(&parts))))
    }
}
