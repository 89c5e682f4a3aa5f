use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::{
    Error, Result,
    event::{Event, Subscriber},
    log::Logged,
    precision::Precision,
};

/// Writes one row per logged value: model, precision, epoch, step, name, value.
#[derive(Debug)]
pub struct CsvLogger {
    path: PathBuf,
    writer: csv::Writer<File>,
    run: Option<(String, Precision)>,
}

impl CsvLogger {
    /// Creates the file with its header, replacing an earlier one.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        let mut logger = Self { path, writer: csv::Writer::from_writer(file), run: None };
        logger.row(["model", "precision", "epoch", "step", "name", "value"])?;
        Ok(logger)
    }

    fn row<'r>(&mut self, fields: impl IntoIterator<Item = &'r str>) -> Result<()> {
        self.writer
            .write_record(fields)
            .map_err(|error| Error::io(&self.path, std::io::Error::other(error)))
    }

    fn values(&mut self, epoch: Option<i64>, step: u64, values: &[Logged]) -> Result<()> {
        let Some((model, precision)) = self.run.clone() else { return Ok(()) };
        let (epoch, step) = (epoch.map_or(String::new(), |e| e.to_string()), step.to_string());
        for Logged { name, value, .. } in values {
            let value = value.to_string();
            self.row([&model, precision.name(), &epoch, &step, name, &value])?;
        }
        Ok(())
    }
}

impl Subscriber for CsvLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => self.run = Some((start.model.clone(), start.precision)),
            Event::Logged { global_step, values } => self.values(None, *global_step, values)?,
            Event::EpochEnd(end) => {
                self.values(Some(end.epoch), end.global_step, &end.train)?;
                self.values(Some(end.epoch), end.global_step, &end.val)?;
                self.writer.flush().map_err(|error| Error::io(&self.path, error))?;
            }
            _ => {}
        }
        Ok(())
    }
}
