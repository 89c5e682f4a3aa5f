//! Subscribers that write a run to a file.

mod csv;
mod jsonl;

pub use csv::CsvLogger;
pub use jsonl::JsonLinesLogger;
