//! Stores the results of `parity` in a folder, so that later calls of `parity` can reuse them. Each
//! model and precision has one row of results, in a file of its own.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use amp_core::{Error, Result, file::Staged, hardware::Fingerprint, precision::Precision};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{ParityArgs, Row, args::Subject};

/// The folder of stored results. The name of a row's file is a digest of everything that the
/// results depend on: the binary, the machine, the versions of Python and torch, the Python source
/// of the model, and the options. The digest does not cover the files of data sets.
pub(super) struct Cache {
    folder: PathBuf,
    /// The digest of the running binary. The binary contains the models, so the digest changes if a
    /// model changes.
    binary: String,
}

impl Cache {
    /// Creates the folder `folder` if it does not exist. Computes the digest of the running binary.
    ///
    /// # Errors
    /// When the folder cannot be created, or the binary cannot be read.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let failed = |error| Error::io("this binary", error);
        let binary = fs::read(env::current_exe().map_err(failed)?).map_err(failed)?;
        Ok(Self { folder: folder.to_owned(), binary: digest(&binary) })
    }

    /// Returns the path of the file for the results of a model under a precision.
    pub(super) fn path(
        &self,
        args: &ParityArgs,
        subject: &Subject,
        precision: Precision,
        machine: &Fingerprint,
        versions: &BTreeMap<String, String>,
    ) -> PathBuf {
        let key = json!([
            self.binary,
            machine,
            versions,
            subject.model.name(),
            precision.to_string(),
            args.kernels.name(),
            subject.twin.python,
            subject.margin,
            [args.seeds, args.seed, args.losses],
            args.epochs,
            args.max_steps,
            args.threads,
        ]);
        self.folder.join(format!("{}.json", digest(key.to_string().as_bytes())))
    }
}

/// Reads the row in the file `path`. Returns `None` if the file does not exist or cannot be read.
pub(super) fn read(path: &Path) -> Option<Row> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Writes the results of a model under a precision to the file `path`.
pub(super) fn write(path: &Path, row: &Row) -> Result<()> {
    let text = serde_json::to_vec(row).map_err(|error| Error::io(path, error.into()))?;
    Staged::create(path)?.write(&text)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
