//! Subscribers that keep a run, in files, written by threads of their own, or in memory, or show it.

mod background;
mod chrome_trace;
mod csv;
mod file;
mod jsonl;
mod memory;
mod progress;
mod scalar;
mod tensorboard;

pub use background::{Background, Sink};
pub use chrome_trace::ChromeTrace;
pub use csv::CsvLogger;
pub use jsonl::JsonLinesLogger;
pub use memory::MemoryLogger;
pub use progress::ProgressBar;
pub use tensorboard::TensorBoardLogger;
