//! Loggers: subscribers that write a run to files on separate threads, keep its values in memory,
//! or show its progress.

mod background;
mod chrome_trace;
mod csv;
mod file;
mod hyperparameters;
mod jsonl;
mod memory;
mod mlflow;
mod png;
mod progress;
mod scalar;
mod tensorboard;
mod wandb;

pub use background::{Background, Sink};
pub use chrome_trace::ChromeTrace;
pub use csv::CsvLogger;
pub use jsonl::JsonLinesLogger;
pub use memory::MemoryLogger;
pub use mlflow::MlflowLogger;
pub use progress::ProgressBar;
pub use tensorboard::TensorBoardLogger;
pub use wandb::WandbLogger;

use self::hyperparameters::hyperparameters;
