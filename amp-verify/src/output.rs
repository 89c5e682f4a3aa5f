//! Writes the log files of a command.

use amp_core::{
    Result,
    event::{Event, Subscriber},
    file::folder,
    logger::{
        ChromeTrace, CsvLogger, JsonLinesLogger, MlflowLogger, TensorBoardLogger, WandbLogger,
    },
};

use crate::options::LogArgs;

/// The loggers that the user requested. A logger creates its files when the command's first
/// training run starts. So a command that fails before then does not overwrite the log files of an
/// earlier command.
pub struct Logs<'a> {
    args: &'a LogArgs,
    loggers: Option<Vec<Box<dyn Subscriber>>>,
}

impl<'a> Logs<'a> {
    /// Checks that the folders of the log files exist.
    ///
    /// # Errors
    /// When a folder does not exist.
    pub fn new(args: &'a LogArgs) -> Result<Self> {
        let LogArgs { log_jsonl, log_csv, log_tensorboard, log_mlflow, log_wandb, trace, .. } =
            args;
        let paths = [log_jsonl, log_csv, log_tensorboard, log_mlflow, log_wandb, trace];
        for path in paths.into_iter().flatten() {
            folder(path)?;
        }
        Ok(Self { args, loggers: None })
    }
}

fn open(args: &LogArgs) -> Result<Vec<Box<dyn Subscriber>>> {
    let mut loggers: Vec<Box<dyn Subscriber>> = Vec::new();
    if let Some(folder) = &args.log_tensorboard {
        loggers.push(Box::new(TensorBoardLogger::create(folder)?));
    }
    if let Some(folder) = &args.log_mlflow {
        loggers.push(Box::new(MlflowLogger::create(folder)?));
    }
    if let Some(folder) = &args.log_wandb {
        loggers.push(Box::new(WandbLogger::create(folder)?));
    }
    if let Some(path) = &args.log_jsonl {
        loggers.push(Box::new(JsonLinesLogger::create(path)?));
    }
    if let Some(path) = &args.log_csv {
        loggers.push(Box::new(CsvLogger::create(path)?));
    }
    if let Some(path) = &args.trace {
        loggers.push(Box::new(ChromeTrace::create(path)?));
    }
    Ok(loggers)
}

impl Subscriber for Logs<'_> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        let loggers = match &mut self.loggers {
            Some(loggers) => loggers,
            none => none.insert(open(self.args)?),
        };
        loggers.iter_mut().try_for_each(|logger| logger.on_event(event))
    }
}
