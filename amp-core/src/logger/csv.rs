use std::path::Path;

use super::{Background, Sink, file::RecordFile};
use crate::{
    Error, Result,
    event::{Event, Subscriber},
    log::Logged,
    precision::Precision,
};

/// Writes one row per logged value: model, precision, epoch, step, name, value.
#[derive(Debug)]
pub struct CsvLogger(Background);

impl CsvLogger {
    /// Creates the file with a header row. Replaces an earlier file of this name.
    ///
    /// # Errors
    /// When the file cannot be created.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::{logger::CsvLogger, prelude::*};
    ///
    /// fn train(model: &mut dyn LightningModule, data: &DataModule, config: TrainerConfig) -> Result<()> {
    ///     let mut csv = CsvLogger::create("run.csv")?;
    ///     Trainer::new(config).subscribe(&mut csv).fit(model, data)?;
    ///     Ok(())
    /// }
    /// ```
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let mut rows = Rows { file: RecordFile::create(path.as_ref())?, run: None };
        let header = ["model", "precision", "epoch", "step", "name", "value"];
        rows.add([header.map(str::to_owned)])?;
        rows.flush()?;
        Background::start(rows).map(Self)
    }
}

impl Subscriber for CsvLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Batch { .. } | Event::Media { .. } => Ok(()),
            _ => self.0.on_event(event),
        }
    }
}

struct Rows {
    file: RecordFile,
    run: Option<(String, Precision)>,
}

impl Rows {
    fn add(&mut self, rows: impl IntoIterator<Item = [String; 6]>) -> Result<()> {
        let failed = |error: String| {
            Error::config(format!("a row of the CSV log cannot be written: {error}"))
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in rows {
            writer.write_record(&row).map_err(|error| failed(error.to_string()))?;
        }
        let bytes = writer.into_inner().map_err(|error| failed(error.to_string()))?;
        self.file.write(&bytes)
    }

    fn values(&mut self, epoch: Option<i64>, step: u64, values: &[Logged]) -> Result<()> {
        let Some((model, precision)) = self.run.clone() else { return Ok(()) };
        let epoch = epoch.map_or(String::new(), |epoch| epoch.to_string());
        self.add(values.iter().map(|Logged { name, value, .. }| {
            let (precision, epoch) = (precision.name().to_owned(), epoch.clone());
            [model.clone(), precision, epoch, step.to_string(), name.clone(), value.to_string()]
        }))
    }
}

impl Sink for Rows {
    fn write(&mut self, event: &Event) -> Result<()> {
        if let Some(start) = event.started() {
            self.run = Some((start.model.clone(), start.precision));
        }
        match event {
            Event::Logged { global_step, values } => self.values(None, *global_step, values)?,
            Event::Validated(seen) => {
                self.values(Some(seen.position.epoch), seen.global_step, &seen.val)?;
            }
            Event::EpochEnd(end) => {
                self.values(Some(end.epoch), end.global_step, &end.train)?;
                self.values(Some(end.epoch), end.global_step, &end.val)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}
