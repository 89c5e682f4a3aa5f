//! Outcomes kept by content: this very binary, the machine, the job.

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
    job::{Job, Outcome},
};

/// Where outcomes are kept.
pub struct Cache(Option<Open>);

struct Open {
    folder: PathBuf,
    /// The binary's digest: it holds the models, the trainer, the data's checksums and libtorch's
    /// version.
    binary: String,
    threads: usize,
}

impl Cache {
    /// No cache.
    pub fn none() -> Self {
        Self(None)
    }

    /// Under `folder`, for processes of so many threads.
    ///
    /// # Errors
    /// When the folder cannot be made or the binary not be read.
    pub fn open(folder: &Path, threads: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let failed = |error| Error::io("this binary", error);
        let bytes = fs::read(env::current_exe().map_err(failed)?).map_err(failed)?;
        let binary = hex(&Sha256::digest(bytes));
        Ok(Self(Some(Open { folder: folder.to_owned(), binary, threads })))
    }

    pub(super) fn get(&self, job: &Job) -> Option<Outcome> {
        // What cannot be read is computed anew.
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
    /// `None` where the machine cannot be told.
    fn path(&self, job: &Job) -> Option<PathBuf> {
        let device = hardware::parse_device(&job.device).ok()?;
        let machine = Fingerprint::of(device).ok()?;
        // The job says these: here they are the last one's that this process did.
        let machine = Fingerprint { threads: 0, tf32: false, deterministic: false, ..machine };
        let parts = [
            self.binary.clone(),
            self.threads.to_string(),
            serde_json::to_string(&machine).ok()?,
            serde_json::to_string(job).ok()?,
        ];
        Some(self.folder.join(format!("{}.json", digest(&parts))))
    }
}
