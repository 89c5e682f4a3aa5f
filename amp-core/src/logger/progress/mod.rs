//! A progress bar for training runs.

mod text;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressDrawTarget, ProgressState, ProgressStyle};

use self::text::RunProgress;
use crate::{
    Result,
    event::{Event, Subscriber},
};

/// Shows the progress of a run on standard error: epoch, batch and step, optimizer steps and examples per
/// second, the remaining time, the loss scale, and logged values.
///
/// On a terminal it draws a bar at most 10 times a second, without colors if `NO_COLOR` is set. If
/// standard error is not a terminal, it writes a line of text every 30 seconds. A run that ends
/// before the first line is due writes nothing. The display uses only the values that the trainer's
/// events contain. These values are already on the host, so the display never waits for the device.
///
/// ```no_run,standalone_crate
/// use amp_core::{logger::ProgressBar, prelude::*};
///
/// fn train(model: &mut dyn LightningModule, data: &DataModule) -> Result<()> {
///     let mut bar = ProgressBar::new().showing(["train_loss"]);
///     let config = TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu);
///     Trainer::new(config).subscribe(&mut bar).fit(model, data)?;
///     bar.finish();
///     Ok(())
/// }
/// # fn main() {}
/// ```
///
/// | shown | meaning |
/// | --- | --- |
/// | `12.3 steps/s` | optimizer steps per second, averaged over about the last 10 seconds of training, not counting validation |
/// | `394 examples/s` | training examples per second, averaged over the same time |
/// | `left 00:01:10` | the remaining time, estimated from the time that the run has taken so far, including validation. The estimate assumes that the run reaches `max_epochs` or `max_steps` |
/// | `train_loss 0.1234` | the last logged value. Shown are values that are logged with `prog_bar`, and values whose names are given to [`showing`](Self::showing) |
pub struct ProgressBar {
    output: Output,
    progress: RunProgress,
    /// The number of consecutive runs for which one bar is drawn.
    runs: u64,
    /// The number of runs that have begun.
    begun: u64,
    /// The earliest time at which the bar is drawn or a line is written again. `None` before the
    /// first time.
    next: Option<Instant>,
}

/// The destination of the progress display.
enum Output {
    Bar {
        bar: indicatif::ProgressBar,
        details: Arc<Mutex<String>>,
    },
    /// Lines of text. `is_used` is true after the first line.
    Lines {
        out: Box<dyn Write>,
        every: Duration,
        is_used: bool,
    },
    Nowhere,
}

/// The shortest time between two drawings of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// The time between two lines of text.
const LINE: Duration = Duration::from_secs(30);
/// The number of positions of the bar for each run.
const PARTS: u64 = 10_000;

impl fmt::Debug for ProgressBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressBar").field("runs", &self.runs).finish_non_exhaustive()
    }
}

impl Default for ProgressBar {
    fn default() -> Self {
        Self::new()
    }
}

impl ProgressBar {
    /// Creates a progress display for one run. The display is a bar if standard error is a
    /// terminal. Otherwise it is a line of text every 30 seconds.
    pub fn new() -> Self {
        match io::stderr().is_terminal() {
            // 255 Hz is the highest drawing rate that indicatif accepts. [`ProgressBar`] itself
            // limits drawing to 10 times a second.
            true => Self::on(ProgressDrawTarget::stderr_with_hz(255)),
            false => Self::lines(io::stderr(), LINE),
        }
    }

    /// Writes lines of text to `out`, and never draws a bar. `every` is the time between two lines.
    pub fn lines(out: impl Write + 'static, every: Duration) -> Self {
        Self::to(Output::Lines { out: Box::new(out), every, is_used: false })
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let bar = indicatif::ProgressBar::with_draw_target(Some(PARTS), target);
        let details = Arc::new(Mutex::new(String::new()));
        let shown = details.clone();
        let style = "{prefix:10} {wide_bar:.cyan/dim} {percent:>3}% {elapsed}\n{details}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.with_key(
                "details",
                move |_: &ProgressState, out: &mut dyn fmt::Write| {
                    // The text is usable even if a thread panicked while it held the lock, because
                    // every write replaces the whole text.
                    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = out.write_str(&shown);
                },
            ));
        }
        Self::to(Output::Bar { bar, details })
    }

    fn to(output: Output) -> Self {
        Self { output, progress: RunProgress::default(), runs: 1, begun: 0, next: None }
    }

    /// Shows one bar for several consecutive runs of equal length.
    #[must_use]
    pub fn over_runs(mut self, runs: usize) -> Self {
        self.runs = (runs as u64).max(1);
        if let Output::Bar { bar, .. } = &self.output {
            bar.set_length(self.runs * PARTS);
        }
        self
    }

    /// Shows the logged values with these names as well, even if they are not logged with
    /// `prog_bar`.
    #[must_use]
    pub fn showing<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.progress.show(names.into_iter().map(Into::into));
        self
    }

    /// Shows nothing: neither a bar nor lines of text.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.output = Output::Nowhere;
        self
    }

    /// Hides the bar while `print` runs, so that `print` can write to the terminal.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.output {
            Output::Bar { bar, .. } => bar.suspend(print),
            Output::Lines { .. } | Output::Nowhere => print(),
        }
    }

    /// Removes the bar from the terminal.
    pub fn finish(&self) {
        if let Output::Bar { bar, .. } = &self.output {
            bar.finish_and_clear();
        }
    }

    fn follow(&mut self, event: &Event, now: Instant) {
        self.progress.follow(event, now);
        match event {
            Event::FitStart(start) => {
                self.begun += 1;
                match &self.output {
                    Output::Bar { bar, .. } => {
                        bar.set_prefix(start.run.precision.name());
                        self.show(now);
                    }
                    Output::Lines { every, .. } => _ = self.next.get_or_insert(now + *every),
                    Output::Nowhere => {}
                }
            }
            Event::Batch { .. } if self.next.is_none_or(|next| now >= next) => self.show(now),
            Event::EpochEnd(_) if !matches!(self.output, Output::Lines { .. }) => self.show(now),
            // A run that ends before its first line is due writes no line.
            Event::FitEnd(_) if matches!(self.output, Output::Lines { is_used: false, .. }) => {}
            Event::FitEnd(_) => {
                self.show(now);
                if let (Output::Bar { bar, .. }, true) = (&self.output, self.begun == self.runs) {
                    // Leaves the bar's last state on the terminal.
                    bar.abandon();
                }
            }
            _ => {}
        }
    }

    /// Draws the bar or writes a line of text. A failed write does not end the run.
    fn show(&mut self, now: Instant) {
        match &mut self.output {
            Output::Bar { bar, details } => {
                self.next = Some(now + REDRAW);
                let text = self.progress.text(now);
                *details.lock().unwrap_or_else(PoisonError::into_inner) = text;
                let done = self.begun.saturating_sub(1) as f64 + self.progress.done();
                bar.update(|state| state.set_pos((done * PARTS as f64) as u64));
            }
            Output::Lines { out, every, is_used } => {
                (self.next, *is_used) = (Some(now + *every), true);
                let percent = (100.0 * self.progress.done()) as u64;
                let _ = writeln!(out, "{percent:>3}%  {}", self.progress.text(now));
                let _ = out.flush();
            }
            Output::Nowhere => self.next = Some(now + LINE),
        }
    }
}

impl Subscriber for ProgressBar {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if !matches!(self.output, Output::Nowhere) {
            self.follow(event, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
