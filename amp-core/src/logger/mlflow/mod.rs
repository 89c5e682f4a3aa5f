//! Writes runs in the format of MLflow's file store.

mod meta;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::SystemTime,
};

use self::meta::{Experiment, RunMeta, Status};
use super::{
    Background, Sink, hyperparameters, png,
    scalar::{Scalar, scalars},
};
use crate::{
    Error, Result,
    event::{Event, FitEnd, RunStart, Subscriber},
    file,
    log::Media,
};

/// Writes runs to a folder in the format of MLflow's file store (`mlruns`), without a server. The
/// experiment has the model's name, and the run has the precision's name.
///
/// | MLflow | what the logger writes there |
/// | --- | --- |
/// | params | hyperparameters, data, precision and seed |
/// | metrics | the values that [`MemoryLogger`](super::MemoryLogger) keeps, under the same tags. Each slash in a tag becomes a dot: MLflow would store a metric `a/b` in a folder `a`, and a metric `a` could then not be stored |
/// | artifacts | images (`NAME/step_000010.png`), texts (`.md`) and histograms (`.json`) |
/// | status | running, then finished, killed (by a signal) or failed |
///
/// `mlflow ui --backend-store-uri FOLDER` shows the runs. MLflow 3 reads file stores only if
/// `MLFLOW_ALLOW_FILE_STORE=true` is set. `mlflow migrate-filestore` converts a file store into a
/// database.
#[derive(Debug)]
pub struct MlflowLogger(Background);

impl MlflowLogger {
    /// Creates a logger that writes to `folder`. Creates the folder if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be created or written to.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let failed = |error| Error::io(&folder, error);
        file::create_folder(&folder)?;
        tempfile::tempfile_in(&folder).map_err(failed)?;
        // The path must be absolute, because `meta.yaml` contains URIs of artifacts.
        let folder = folder.canonicalize().map_err(failed)?;
        Background::start(Store { folder, run: None }).map(Self)
    }
}

impl Subscriber for MlflowLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Batch { .. } => Ok(()),
            _ => self.0.on_event(event),
        }
    }
}

struct Store {
    folder: PathBuf,
    /// The current run. `None` before a run starts and after it has ended.
    run: Option<Run>,
}

struct Run {
    folder: PathBuf,
    meta: RunMeta,
    /// For each metric, the lines that are still to be written to the metric's file.
    metrics: BTreeMap<String, Vec<u8>>,
}

impl Run {
    fn start(store: &Path, start: &RunStart) -> Result<Self> {
        let experiment = Experiment::find(store, &start.model)?;
        let run_id: String = (0..32).map(|_| fastrand::digit(16)).collect();
        let folder = experiment.folder.join(&run_id);
        for part in ["metrics", "params", "tags", "artifacts"] {
            make(&folder.join(part))?;
        }
        let name = start.precision.name().to_owned();
        let meta = RunMeta::new(&experiment.id, run_id, name.clone(), &folder, now());
        for (name, value) in hyperparameters(start) {
            let text = match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            write(&folder.join("params").join(plain(&name)), text.as_bytes())?;
        }
        let machine = format!("{} ({})", start.fingerprint.device, start.fingerprint.capability);
        let tags = [("mlflow.runName", name), ("device", machine)];
        for (tag, value) in tags {
            write(&folder.join("tags").join(tag), value.as_bytes())?;
        }
        meta.write(&folder)?;
        Ok(Self { folder, meta, metrics: BTreeMap::new() })
    }

    fn media(&self, step: u64, name: &str, media: &Media) -> Result<()> {
        let folder = self.folder.join("artifacts").join(plain(name));
        make(&folder)?;
        let file = |ending: &str| folder.join(format!("step_{step:06}.{ending}"));
        match media {
            Media::Image(image) => write(&file("png"), &png::encoded(image)?),
            Media::Text(text) => write(&file("md"), text.as_bytes()),
            Media::Histogram(histogram) => {
                let json = serde_json::to_vec(histogram).map_err(|error| {
                    Error::config(format!("a histogram cannot be converted to JSON: {error}"))
                })?;
                write(&file("json"), &json)
            }
        }
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        if let Event::Media { global_step, name, media } = event {
            self.media(*global_step, name, media)?;
        }
        let now = now();
        for Scalar { tag, step, value } in scalars(event) {
            // Python's `float()` must be able to read the text. NaN and infinity become `nan` and
            // `inf`.
            let value = value.to_string().to_lowercase();
            let line = format!("{now} {value} {step}\n");
            self.metrics.entry(plain(&tag)).or_default().extend_from_slice(line.as_bytes());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let folder = self.folder.join("metrics");
        for (name, lines) in std::mem::take(&mut self.metrics) {
            let path = folder.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.and_then(|mut file| file.write_all(&lines))
                .map_err(|error| Error::io(&path, error))?;
        }
        Ok(())
    }

    fn end(mut self, status: Status) -> Result<()> {
        self.flush()?;
        self.meta.end(status, now());
        self.meta.write(&self.folder)
    }
}

impl Store {
    /// Gives the current run, which did not finish, the status failed.
    fn fail(&mut self) -> Result<()> {
        self.run.take().map_or(Ok(()), |run| run.end(Status::Failed))
    }
}

impl Sink for Store {
    fn write(&mut self, event: &Event) -> Result<()> {
        if let Some(start) = event.started() {
            self.fail()?;
            self.run = Some(Run::start(&self.folder, start)?);
        }
        if let Some(run) = &mut self.run {
            run.write(event)?;
        }
        let status = match event {
            Event::FitEnd(FitEnd { interrupted: Some(_), .. }) => Status::Killed,
            _ => Status::Finished,
        };
        match self.run.take_if(|_| event.ends_run()) {
            Some(run) => run.end(status),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.run.as_mut().map_or(Ok(()), Run::flush)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // An error can be ignored here: the run has failed for another reason, which the caller
        // reports.
        let _ = self.fail();
    }
}

/// Returns the name without slashes and without characters that MLflow refuses.
fn plain(name: &str) -> String {
    let allowed = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
    name.chars().map(|c| if allowed(c) { c } else { '.' }).collect()
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| Error::io(path, error))
}

/// Returns the time since 1970 in milliseconds.
fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}
