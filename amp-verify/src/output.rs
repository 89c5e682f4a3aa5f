//! The logs a command writes.

use amp_core::{
    Result,
    event::{Event, Subscriber},
    file::folder,
    logger::{CsvLogger, JsonLinesLogger, TensorBoardLogger},
};

use crate::cli::LogArgs;

/// The logs the user asked for.
pub struct Logs {
    loggers: Vec<Box<dyn Subscriber>>,
}

impl Logs {
    /// Opens them; none is created when the folder of one is missing.
    ///
    /// # Errors
    /// When a folder is missing or a file cannot be created.
    pub fn create(args: &LogArgs) -> Result<Self> {
        for path in [&args.log_jsonl, &args.log_csv, &args.log_tensorboard].into_iter().flatten() {
            folder(path)?;
        }
        let mut loggers: Vec<Box<dyn Subscriber>> = Vec::new();
        if let Some(folder) = &args.log_tensorboard {
            loggers.push(Box::new(TensorBoardLogger::create(folder)?));
        }
        if let Some(path) = &args.log_jsonl {
            loggers.push(Box::new(JsonLinesLogger::create(path)?));
        }
        if let Some(path) = &args.log_csv {
            loggers.push(Box::new(CsvLogger::create(path)?));
        }
        Ok(Self { loggers })
    }
}

impl Subscriber for Logs {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.loggers.iter_mut().try_for_each(|logger| logger.on_event(event))
    }
}
