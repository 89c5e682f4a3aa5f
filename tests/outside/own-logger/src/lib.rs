//! A logger that you write yourself. The README of this crate explains it.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use amp_core::{
    Error, Result,
    event::{EpochEnd, Event, Subscriber},
};

/// Writes one line for each epoch, for example `epoch 0 step 25 lr 0.001 train_loss 0.9 val_loss
/// 0.7`, and one line for each skipped step.
#[derive(Debug)]
pub struct EpochLines {
    path: PathBuf,
    file: File,
}

impl EpochLines {
    /// Creates the file, replacing an earlier one.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self { path, file })
    }

    /// Returns the path of the file that the logger writes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, line: &str) -> Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|error| Error::io(&self.path, error))
    }
}

impl Subscriber for EpochLines {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::EpochEnd(end) => self.write(&line(end)),
            Event::Skipped(skipped) => {
                self.write(&format!("skipped step {}: {}", skipped.attempt, skipped.cause()))
            }
            _ => Ok(()),
        }
    }
}

fn line(end: &EpochEnd) -> String {
    let mut line = format!("epoch {} step {} lr {}", end.epoch, end.global_step, end.lr);
    for logged in end.train.iter().chain(&end.val) {
        line += &format!(" {} {}", logged.name, logged.value);
    }
    line
}

/// `cargo test` compiles and runs the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
