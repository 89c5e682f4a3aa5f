//! A progress bar over all runs, on standard error.

use amp_core::{
    Result,
    event::{Event, Position, Subscriber},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar for `runs` runs; it shows the precision and the values marked `prog_bar`.
pub struct Progress {
    bar: ProgressBar,
    runs: u64,
    steps: u64,
    epochs: i64,
}

impl Progress {
    /// A bar that is drawn if standard error is a terminal.
    pub fn new(runs: usize) -> Self {
        Self::drawn(runs, ProgressDrawTarget::stderr())
    }

    /// A bar that is never drawn.
    pub fn hidden(runs: usize) -> Self {
        Self::drawn(runs, ProgressDrawTarget::hidden())
    }

    fn drawn(runs: usize, target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "{prefix:10} {wide_bar:.cyan/dim} {percent:>3}% {elapsed} (left {eta})  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar, runs: runs as u64, steps: 0, epochs: 0 }
    }

    /// Runs `print` while the bar is hidden.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Subscriber for Progress {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => {
                self.epochs = start.max_epochs;
                self.steps = (start.max_epochs * start.batches_per_epoch).cast_unsigned();
                self.bar.set_length(self.runs * self.steps);
                if let Some(Position { epoch, batch }) = start.resumed {
                    let done = epoch * start.batches_per_epoch + batch;
                    // Epochs of an earlier run took none of this run's time.
                    self.bar.inc(done.cast_unsigned());
                    self.bar.reset_eta();
                }
                self.bar.set_prefix(start.precision.name());
                self.bar.set_message("starting");
            }
            Event::Batch { .. } => self.bar.inc(1),
            Event::EpochEnd(end) => {
                let values = end.train.iter().chain(&end.val).filter(|logged| logged.prog_bar);
                let values: Vec<String> =
                    values.map(|logged| format!("{} {:.4}", logged.name, logged.value)).collect();
                let epoch = end.epoch + 1;
                let values = values.join("  ");
                self.bar.set_message(format!("epoch {epoch}/{}  {values}", self.epochs));
            }
            _ => {}
        }
        Ok(())
    }
}
