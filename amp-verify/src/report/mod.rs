//! Reports as HTML: the comparison of precisions with charts, and the report of the gate. Each
//! report is one file that needs no network and supports light and dark color schemes.

mod chart;
mod color;
mod gate;
mod page;
mod steps;
mod table;

use std::collections::BTreeMap;

use amp_core::{
    Result,
    event::{Event, Subscriber},
    precision::Precision,
};

pub use gate::gate_html;
pub use page::{Content, html};
pub use steps::measure_steps;

/// The values of one run over time, for charts.
#[derive(Debug, Clone, Default)]
pub struct RunHistory {
    /// For each epoch: the number of optimizer steps applied until its end, and the validation loss
    /// at its end.
    pub val_loss: Vec<(f64, f64)>,
    /// For each epoch: the number of optimizer steps applied until its end, and the training loss.
    pub train_loss: Vec<(f64, f64)>,
    /// The number of steps attempted so far, and the loss scale from then on: at the start of the
    /// run, at each change of the loss scale, and at the end of the run. Empty if the loss is not
    /// scaled.
    pub scale: Vec<(f64, f64)>,
    /// For each skipped step: the index of the step among the attempted steps, and the loss scale
    /// in this step.
    pub skips: Vec<(f64, f64)>,
}

/// Collects the losses and loss scales of runs over time. If a precision runs more than once, keeps
/// only the first run.
#[derive(Debug, Default)]
pub struct RunHistories {
    runs: BTreeMap<Precision, RunHistory>,
    current: Option<Precision>,
}

impl RunHistories {
    /// Returns the history of the run under `precision`. Returns `None` if there was no such run.
    pub fn of(&self, precision: Precision) -> Option<&RunHistory> {
        self.runs.get(&precision)
    }
}

impl Subscriber for RunHistories {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if let Event::FitStart(start) = event {
            let precision = start.run.precision;
            self.current = (!self.runs.contains_key(&precision)).then_some(precision);
            self.runs.entry(precision).or_default();
        }
        let Some(history) = self.current.and_then(|now| self.runs.get_mut(&now)) else {
            return Ok(());
        };
        match event {
            Event::Skipped(skipped) => {
                if history.scale.is_empty() {
                    history.scale.push((0.0, skipped.scale));
                }
                history.skips.push((skipped.attempt as f64, skipped.scale));
            }
            Event::Scale { attempt, scale } => history.scale.push((*attempt as f64, *scale)),
            Event::EpochEnd(end) => {
                let step = end.global_step as f64;
                for (name, line) in
                    [("val_loss", &mut history.val_loss), ("train_loss", &mut history.train_loss)]
                {
                    line.extend(end.value(name).filter(|v| v.is_finite()).map(|v| (step, v)));
                }
            }
            Event::FitEnd(end) => {
                if let Some(scale) = end.scale {
                    if history.scale.is_empty() {
                        history.scale.push((0.0, scale));
                    }
                    history.scale.push(((end.global_step + end.skipped) as f64, scale));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns Wilson's 95 % score interval (Wilson 1927) of a fraction that was measured with `n`
/// examples, for example of an accuracy. The interval contains those values of the true fraction
/// that are compatible with the measured fraction. It stays between 0 and 1, and is not empty even
/// if the measured fraction is 0 or 1.
pub fn wilson(share: f64, n: i64) -> (f64, f64) {
    let (z, n) = (1.959_963_985, n.max(1) as f64);
    let z2 = z * z;
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}
