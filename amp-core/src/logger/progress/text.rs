//! Computes the text that the progress bar shows.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use indicatif::FormattedDuration;

use crate::{
    event::{Event, Position, Recovery},
    log::Logged,
};

/// The time over which rates are averaged.
const WINDOW: Duration = Duration::from_secs(10);

/// How far a run has come, its speed, and the values to show.
#[derive(Debug, Default)]
pub(super) struct RunProgress {
    /// The names of values that are shown even if they are not logged with `prog_bar`.
    names: Vec<String>,
    epochs: i64,
    batches: i64,
    epoch: i64,
    batch: i64,
    global_step: u64,
    /// The completed fraction of the run, from 0 to 1.
    done: f64,
    scale: Option<f64>,
    values: Vec<(String, f64)>,
    /// When the run started in this process, and the fraction of the run that was complete then.
    began: Option<(Instant, f64)>,
    speed: Speed,
}

impl RunProgress {
    pub(super) fn show(&mut self, names: impl Iterator<Item = String>) {
        self.names.extend(names);
    }

    pub(super) fn done(&self) -> f64 {
        self.done
    }

    pub(super) fn follow(&mut self, event: &Event, now: Instant) {
        match event {
            Event::FitStart(start) => {
                let Position { epoch, batch } = start.resumed.unwrap_or_default();
                let (epochs, batches) = (start.max_epochs, start.batches_per_epoch);
                let done = (epoch * batches + batch) as f64 / (epochs * batches).max(1) as f64;
                let names = std::mem::take(&mut self.names);
                let began = Some((now, done));
                *self =
                    Self { names, epochs, batches, epoch, batch, done, began, ..Self::default() };
            }
            Event::Batch { epoch, batch, global_step, examples, scale, done } => {
                // The first batch is counted as one step, because in a resumed run its
                // `global_step` includes the steps before the checkpoint.
                let steps = global_step.saturating_sub(self.global_step);
                let steps = if self.speed.last.is_some() { steps } else { 1 };
                self.speed.count(now, steps, *examples);
                (self.epoch, self.batch, self.global_step) = (*epoch, batch + 1, *global_step);
                (self.scale, self.done) = (*scale, *done);
            }
            Event::Logged { values, .. } => self.take(values),
            Event::Validated(seen) => {
                self.take(&seen.val);
                self.speed.pause();
            }
            Event::EpochEnd(end) => {
                self.take(&end.train);
                self.take(&end.val);
                self.speed.pause();
            }
            Event::Recovered { recovery: Recovery::FellBack { .. }, .. } => self.scale = None,
            _ => {}
        }
    }

    fn take(&mut self, values: &[Logged]) {
        for Logged { name, value, prog_bar } in values {
            if !prog_bar && !self.names.contains(name) {
                continue;
            }
            match self.values.iter_mut().find(|(known, _)| known == name) {
                Some((_, last)) => *last = *value,
                None => self.values.push((name.clone(), *value)),
            }
        }
    }

    /// Formats the progress as one line, without a line break at its end.
    pub(super) fn text(&mut self, now: Instant) -> String {
        let Self { epochs, batches, epoch, batch, global_step, scale, .. } = *self;
        let mut text =
            format!("epoch {}/{epochs}  batch {batch}/{batches}", (epoch + 1).min(epochs));
        let mut add = |part: String| {
            text.push_str("  ");
            text.push_str(&part);
        };
        if global_step > 0 {
            add(format!("step {global_step}"));
        }
        if let Some((steps, examples)) = self.speed.rates(now) {
            add(format!("{} steps/s", three_digits(steps)));
            add(format!("{} examples/s", three_digits(examples)));
        }
        if let Some(left) = self.left(now) {
            add(format!("left {}", FormattedDuration(left)));
        }
        if let Some(scale) = scale {
            add(format!("scale {scale}"));
        }
        for (name, value) in &self.values {
            let mut part = String::new();
            let _ = write!(part, "{name} {value:.4}");
            add(part);
        }
        text
    }

    /// Returns the estimated time until the end of the run, at the average speed so far.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (began, before) = self.began?;
        let passed = now.saturating_duration_since(began).as_secs_f64();
        let done = self.done - before;
        let left = passed * (1.0 - self.done) / done;
        (done > 0.0 && passed > 0.0)
            .then(|| Duration::try_from_secs_f64(left.round()).ok())
            .flatten()
    }
}

/// The optimizer steps and examples per second, averaged over about the last `WINDOW` of time.
#[derive(Debug, Default)]
struct Speed {
    /// The start of the time in which `steps` and `examples` were counted. `None` before the first
    /// batch, and during a pause of training.
    last: Option<Instant>,
    /// When the most recent batch ended. `None` before the first batch.
    seen: Option<Instant>,
    steps: u64,
    examples: i64,
    /// The averaged optimizer steps per second and examples per second.
    rates: Option<(f64, f64)>,
}

impl Speed {
    fn count(&mut self, now: Instant, steps: u64, examples: i64) {
        self.seen = Some(now);
        if self.last.is_none() {
            // The first batch after a start or a pause is not counted, because its start time is
            // not known.
            self.last = Some(now);
            return;
        }
        self.steps += steps;
        self.examples += examples;
    }

    /// Updates the rates at the end of the most recent batch, because validation or the end of an
    /// epoch follows. This pause does not lower the rates.
    fn pause(&mut self) {
        if let Some(seen) = self.seen {
            let _ = self.rates(seen);
        }
        self.last = None;
        (self.steps, self.examples) = (0, 0);
    }

    /// Returns optimizer steps and examples per second, or `None` before the second batch.
    fn rates(&mut self, now: Instant) -> Option<(f64, f64)> {
        let Some(last) = self.last else { return self.rates };
        let passed = now.saturating_duration_since(last);
        if self.examples > 0 && !passed.is_zero() {
            let seconds = passed.as_secs_f64();
            let new = (self.steps as f64 / seconds, self.examples as f64 / seconds);
            let weight = 1.0 - (-seconds / WINDOW.as_secs_f64()).exp();
            let mix = |old: f64, new: f64| old + weight * (new - old);
            self.rates = Some(match self.rates {
                None => new,
                Some(old) => (mix(old.0, new.0), mix(old.1, new.1)),
            });
            (self.last, self.steps, self.examples) = (Some(now), 0, 0);
        }
        self.rates
    }
}

/// Formats a rate with three digits, or with all digits before the decimal point if there are more.
fn three_digits(rate: f64) -> String {
    match rate {
        rate if rate >= 99.95 => format!("{rate:.0}"),
        rate if rate >= 9.995 => format!("{rate:.1}"),
        rate => format!("{rate:.2}"),
    }
}
