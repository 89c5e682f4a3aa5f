//! A run's epochs, one line each as they end.

use std::io::Write;

use amp_core::{
    Error, Result,
    event::{Event, Phases, Subscriber},
    log::Logged,
};

/// Writes a line per epoch, and one for each thing the user should know.
pub struct EpochTable<W> {
    out: W,
    header: bool,
    profile: Vec<Phases>,
}

impl<W: Write> EpochTable<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, header: false, profile: Vec::new() }
    }

    fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").map_err(|error| Error::io("standard output", error))
    }
}

impl<W: Write> Subscriber for EpochTable<W> {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => self.line(&format!(
                "{} on {} under {}, {} on {}",
                start.model,
                start.data,
                start.precision,
                start.fingerprint.device,
                start.fingerprint.capability
            )),
            Event::Note { text } => self.line(&format!("note: {text}")),
            Event::Skipped { attempt, culprit, scale } => {
                let culprit = culprit.as_deref().unwrap_or("a gradient");
                self.line(&format!(
                    "step {attempt} skipped: `{culprit}` was not finite at scale {scale}"
                ))
            }
            Event::Saved { path } => self.line(&format!("saved {}", path.display())),
            Event::Stopped { reason } => self.line(&format!("stopped early: {reason}")),
            Event::EpochEnd(end) => {
                let values: Vec<_> = end.train.iter().chain(&end.val).collect();
                // Wide enough for its name, and for a number with five decimals.
                let column = |logged: &Logged, text: String| {
                    format!("{text:>0$}", logged.name.len().max(10))
                };
                if !self.header {
                    self.header = true;
                    let names: Vec<String> =
                        values.iter().map(|logged| column(logged, logged.name.clone())).collect();
                    let (names, lr, seconds) = (names.join("  "), "lr", "seconds");
                    self.line(&format!("epoch  step  {names}  {lr:>9} {seconds:>8}"))?;
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
            Event::Profiled { phases, .. } => {
                self.profile.push(*phases);
                Ok(())
            }
            Event::FitEnd(_) if !self.profile.is_empty() => self.line(&summary(&self.profile)),
            _ => Ok(()),
        }
    }
}

/// Mean and standard deviation of each phase, in milliseconds. The first step is left out: it
/// loads kernels and is probed.
fn summary(profile: &[Phases]) -> String {
    let steps = if profile.len() > 1 { &profile[1..] } else { profile };
    let count = steps.len() as f64;
    let phase = |name: &str, of: fn(&Phases) -> f64| {
        let mean = steps.iter().map(of).sum::<f64>() / count;
        let variance = steps.iter().map(|step| (of(step) - mean).powi(2)).sum::<f64>() / count;
        format!("{name} {:.3} ± {:.3} ms", 1e3 * mean, 1e3 * variance.sqrt())
    };
    let mut parts = vec![
        phase("forward", |step| step.forward),
        phase("backward", |step| step.backward),
        phase("optimizer", |step| step.optimizer),
    ];
    if let Some(bytes) = steps.iter().filter_map(|step| step.memory).max() {
        parts.push(format!("memory {:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    }
    format!("{} profiled steps: {}", steps.len(), parts.join(", "))
}
