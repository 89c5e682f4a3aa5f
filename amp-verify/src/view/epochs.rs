//! Prints a line for each epoch of a run when the epoch ends.

use std::io::{ErrorKind, Write};

use amp_core::{
    Error, Result,
    event::{Event, Position, Subscriber},
    log::Logged,
    trainer::Profile,
};

use super::phases;

/// Prints one line for each epoch, and one line for each event that the user must see, such as a
/// skipped step or a note.
///
/// Values of single parameters, such as `grad_norm/model.0.weight`, are not printed, because there
/// are too many. Loggers receive these values. The table does not say that `last.safetensors` was
/// saved, because this may happen in every step.
pub struct EpochTable<W> {
    out: W,
    /// Whether the program that reads the output has closed the pipe. If so, nothing more is
    /// printed, but the training continues.
    closed: bool,
    /// The header that was printed last.
    header: String,
    profile: Vec<Profile>,
}

impl<W: Write> EpochTable<W> {
    /// Creates a table that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, closed: false, header: String::new(), profile: Vec::new() }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match writeln!(self.out, "{text}") {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            outcome => outcome.map_err(|error| Error::io("standard output", error)),
        }
    }
}

/// Returns whether the logged value `name` gets a column. A name without `/` gets a column. A name
/// with `/` belongs either to a single parameter or to one of several validation sets. Only the
/// values of validation sets get a column.
fn is_shown(name: &str) -> bool {
    !name.contains('/') || name.starts_with("val_")
}

impl<W: Write> Subscriber for EpochTable<W> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => {
                self.line(&format!(
                    "{} on {} under {}, {} on {}",
                    start.run.model,
                    start.run.data,
                    start.run.precision,
                    start.run.fingerprint.device,
                    start.run.fingerprint.capability
                ))?;
                let Some(Position { epoch, batch }) = start.resumed else { return Ok(()) };
                if epoch >= start.max_epochs {
                    return self
                        .line("resumed after the last epoch: there is nothing more to train");
                }
                self.line(&format!("resumed in epoch {} after {batch} batches", epoch + 1))
            }
            Event::Note { text } => self.line(&format!("note: {text}")),
            Event::Checkpointed(plan) => self.line(&plan.to_string()),
            Event::Skipped(skipped) => self.line(&format!(
                "step {} skipped at scale {}: {}",
                skipped.attempt,
                skipped.scale,
                skipped.cause()
            )),
            Event::Recovered { attempt, recovery } => {
                self.line(&format!("after step {attempt}: {recovery}"))
            }
            Event::Saved { path } if path.file_stem().is_some_and(|stem| stem == "last") => Ok(()),
            Event::Saved { path } => self.line(&format!("saved {}", path.display())),
            Event::Stopped { reason } => self.line(&format!("stopped early: {reason}")),
            Event::Interrupted { signal, saved: Some(path) } => {
                self.line(&format!("ended by signal {signal}, saved {}", path.display()))
            }
            Event::Interrupted { signal, saved: None } => self.line(&format!(
                "ended by signal {signal}; nothing is saved without --checkpoint-dir"
            )),
            Event::Validated(seen) => {
                let values = seen.val.iter();
                let values = values.map(|logged| format!("{} {:.5}", logged.name, logged.value));
                let values: Vec<String> = values.collect();
                self.line(&format!("after step {}: {}", seen.global_step, values.join(", ")))
            }
            Event::EpochEnd(end) => {
                let values = end.train.iter().chain(&end.val);
                let values: Vec<&Logged> = values.filter(|logged| is_shown(&logged.name)).collect();
                // A column is as wide as the name of the value, and wide enough for a number with
                // five decimals.
                let column = |logged: &Logged, text: String| {
                    format!("{text:>0$}", logged.name.len().max(10))
                };
                let names: Vec<String> =
                    values.iter().map(|logged| column(logged, logged.name.clone())).collect();
                let (names, lr, seconds) = (names.join("  "), "lr", "seconds");
                let header = format!("epoch  step  {names}  {lr:>9} {seconds:>8}");
                // The header is printed again if the columns change. For example, values that are
                // measured over a whole epoch are missing in an epoch that was resumed in the
                // middle.
                if header != self.header {
                    self.line(&header)?;
                    self.header = header;
                }
                let figures: Vec<String> = values
                    .iter()
                    .map(|logged| column(logged, format!("{:.5}", logged.value)))
                    .collect();
                self.line(&format!(
                    "{:>5} {:>5}  {}  {:>9.3e} {:>8.2}",
                    end.epoch + 1,
                    end.global_step,
                    figures.join("  "),
                    end.lr,
                    end.train_seconds + end.val_seconds
                ))
            }
            Event::Profiled(profile) => {
                self.profile.push(profile.clone());
                Ok(())
            }
            Event::FitEnd(_) if !self.profile.is_empty() => {
                self.line(phases(&self.profile).trim_end())
            }
            _ => Ok(()),
        }
    }
}
