//! Writes event files for TensorBoard.

mod hparams;
mod media;
mod proto;
mod record;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;

use self::proto::{Summary, Value};
use super::{
    Background, Sink,
    file::RecordFile,
    scalar::{Scalar, scalars},
};
use crate::{
    Error, Result,
    event::{Event, RunStart, Subscriber},
    file,
};

/// Writes event files for `tensorboard --logdir FOLDER`. The files contain scalars under the tags
/// of [`MemoryLogger`](super::MemoryLogger), in f32 as TensorBoard stores them, and the
/// hyperparameters for TensorBoard's HParams page. They also contain the images, texts and
/// histograms that steps and hooks log, in the format of torch.utils.tensorboard.
///
/// Each run has a separate folder, `FOLDER/<model>/<precision>/version_<n>`, numbered as Lightning
/// does. Therefore TensorBoard shows the runs side by side and does not merge them.
#[derive(Debug)]
pub struct TensorBoardLogger(Background);

impl TensorBoardLogger {
    /// Creates a logger that writes to `folder`. Creates the folder if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be created or written to.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let failed = |error| Error::io(&folder, error);
        file::create_folder(&folder)?;
        tempfile::tempfile_in(&folder).map_err(failed)?;
        Background::start(EventFiles { folder, run: None }).map(Self)
    }
}

impl Subscriber for TensorBoardLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Batch { .. } => Ok(()),
            _ => self.0.on_event(event),
        }
    }
}

struct EventFiles {
    folder: PathBuf,
    /// The file of the run that started last.
    run: Option<RecordFile>,
}

impl EventFiles {
    fn start(&mut self, start: &RunStart) -> Result<()> {
        self.flush()?;
        let folder = self.folder.join(&start.model).join(start.precision.name());
        let mut file = RecordFile::create(&new_version(&folder)?.join(file_name()))?;
        let version = Some("brain.Event:2".to_owned());
        let event = proto::Event { wall_time: now(), file_version: version, ..Default::default() };
        file.write(&record::framed(&event.encode_to_vec()))?;
        self.run = Some(file);
        self.summary(0, vec![hparams::session_start(start, now())])
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        let Some(file) = &mut self.run else { return Ok(()) };
        let event = proto::Event {
            wall_time: now(),
            step: step.cast_signed(),
            summary: Some(Summary { value }),
            ..Default::default()
        };
        file.write(&record::framed(&event.encode_to_vec()))
    }
}

impl Sink for EventFiles {
    fn write(&mut self, event: &Event) -> Result<()> {
        if let Some(start) = event.started() {
            self.start(start)?;
        }
        match event {
            Event::EvaluationEnd { .. } => self.summary(0, vec![hparams::session_end(now())])?,
            Event::FitEnd(end) => {
                self.summary(end.global_step, vec![hparams::session_end(now())])?
            }
            Event::Media { global_step, name, media } => {
                self.summary(*global_step, vec![media::value(name, media)?])?;
            }
            _ => {}
        }
        for Scalar { tag, step, value } in scalars(event) {
            let simple_value = Some(value as f32);
            self.summary(step, vec![Value { tag, simple_value, ..Default::default() }])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.run.as_mut().map_or(Ok(()), RecordFile::flush)
    }
}

/// Creates the first folder `version_<n>` that does not exist yet.
fn new_version(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let mut number = 0;
    loop {
        let version = folder.join(format!("version_{number}"));
        // The folder is created without checking first whether it exists, so that two processes
        // never get the same folder.
        match fs::create_dir(&version) {
            Ok(()) => return Ok(version),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::io(&version, error)),
        }
    }
}

/// Returns the file name in TensorFlow's form. TensorBoard reads files with `tfevents` in their
/// names, in the order of the names.
fn file_name() -> String {
    let (seconds, process) = (now() as u64, std::process::id());
    let host = gethostname::gethostname();
    format!("events.out.tfevents.{seconds:010}.{}.{process}.0", host.to_string_lossy())
}

/// Returns the time since 1970 in seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
