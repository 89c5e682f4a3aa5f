//! The `meta.yaml` files of experiments and runs in MLflow's file store.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use super::{make, now};
use crate::{Error, Result, file::Staged};

/// The status of a run, with the numbers of MLflow's RunStatus.
#[derive(Debug, Clone, Copy)]
pub(super) enum Status {
    Running = 1,
    Finished = 3,
    Failed = 4,
    Killed = 5,
}

/// An experiment in MLflow's file store.
#[derive(Debug)]
pub(super) struct Experiment {
    pub(super) id: String,
    pub(super) folder: PathBuf,
}

impl Experiment {
    /// Finds the experiment `name` in the file store, or creates it.
    pub(super) fn find(store: &Path, name: &str) -> Result<Self> {
        let failed = |error| Error::io(store, error);
        for entry in fs::read_dir(store).map_err(failed)? {
            let folder = entry.map_err(failed)?.path();
            let Ok(meta) = fs::read_to_string(folder.join("meta.yaml")) else { continue };
            let field = |key: &str| {
                let lines = meta.lines();
                lines
                    .filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                    .map(unquoted)
                    .next()
            };
            if field("name").as_deref() == Some(name)
                && field("lifecycle_stage").as_deref() == Some("active")
                && let Some(id) = field("experiment_id")
            {
                return Ok(Self { id, folder });
            }
        }
        // MLflow's ids are random numbers of 18 digits. The first digit is not 0.
        let id = fastrand::u64(100_000_000_000_000_000..1_000_000_000_000_000_000).to_string();
        let folder = store.join(&id);
        make(&folder)?;
        let (uri, now) = (uri(&folder), now());
        let text = format!(
            "artifact_location: {}\ncreation_time: {now}\nexperiment_id: {}\nlast_update_time: {now}\n\
             lifecycle_stage: active\nname: {}\n",
            quoted(&uri),
            quoted(&id),
            quoted(name)
        );
        Staged::create(&folder.join("meta.yaml"))?.write(text.as_bytes())?;
        Ok(Self { id, folder })
    }
}

/// The content of a run's `meta.yaml`.
#[derive(Debug)]
pub(super) struct RunMeta {
    experiment: String,
    id: String,
    name: String,
    artifacts: String,
    started: u128,
    ended: Option<u128>,
    status: Status,
}

impl RunMeta {
    pub(super) fn new(
        experiment: &str,
        id: String,
        name: String,
        folder: &Path,
        started: u128,
    ) -> Self {
        let artifacts = uri(&folder.join("artifacts"));
        let (ended, status) = (None, Status::Running);
        Self { experiment: experiment.to_owned(), id, name, artifacts, started, ended, status }
    }

    pub(super) fn end(&mut self, status: Status, ended: u128) {
        (self.status, self.ended) = (status, Some(ended));
    }

    /// Writes `meta.yaml` into the run's folder. A reader never sees a partly written file.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let ended = self.ended.map_or("null".to_owned(), |ended| ended.to_string());
        let id = quoted(&self.id);
        let mut text = format!("artifact_uri: {}\nend_time: {ended}\n", quoted(&self.artifacts));
        let _ = write!(
            text,
            "entry_point_name: ''\nexperiment_id: {}\nlifecycle_stage: active\nrun_id: {id}\nrun_name: {}\n\
             run_uuid: {id}\nsource_name: ''\nsource_type: 4\nsource_version: ''\nstart_time: {}\nstatus: {}\n\
             tags: []\nuser_id: ''\n",
            quoted(&self.experiment),
            quoted(&self.name),
            self.started,
            self.status as i32,
        );
        Staged::create(&folder.join("meta.yaml"))?.write(text.as_bytes())
    }
}

/// Encloses a text in YAML's single quotes, in which only the single quote is special.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn unquoted(text: &str) -> String {
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(inner) => inner.replace("''", "'"),
        None => text.to_owned(),
    }
}

/// Returns the URI of a file: `file://` followed by the path, encoded as Python's `pathname2url`
/// does.
fn uri(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.to_string_lossy().bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"/_.-~".contains(&byte) => {
                uri.push(byte.into())
            }
            byte => _ = write!(uri, "%{byte:02X}"),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that quoted names are read back unchanged, and that a path becomes a valid URI.
    #[test]
    fn names_and_paths_are_written_so_that_they_are_read_again() {
        for name in ["Net", "it's: a # name", "'", ""] {
            assert_eq!(unquoted(&quoted(name)), name);
        }
        assert_eq!(unquoted("Default"), "Default");
        assert_eq!(uri(Path::new("/a b/ü/c-1_2.~")), "file:///a%20b/%C3%BC/c-1_2.~");
    }
}
