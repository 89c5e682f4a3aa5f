//! ReduceLROnPlateau (torch/optim/lr_scheduler.py).

use serde::{Deserialize, Serialize};

use super::{BuildScheduler, Rates, Scheduler, within};
use crate::{Error, Result, monitor::Mode, optim::saved, state::State};

/// Whether `threshold` is relative to the best value or an absolute difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// `threshold` is a fraction of the best value's absolute value. Torch uses the best value with
    /// its sign: a negative best value makes the threshold negative, so that even a worse value can
    /// count as an improvement.
    #[default]
    Rel,
    /// An absolute difference.
    Abs,
}

/// Multiplies the rate by `factor` if the monitored value has not improved for more than `patience`
/// values in a row. The defaults are those of torch; the monitored value is `val_loss` by default.
///
/// A validation value is read once per validation: with `val_check_interval = 0.5` this is twice
/// per epoch, so that `patience = 10` is five epochs. A training value is read once per epoch.
/// (Lightning reads both once per epoch by default.)
#[derive(Debug, Clone, PartialEq)]
pub struct ReduceLrOnPlateau {
    /// The name of the logged value that is monitored, such as `val_loss`.
    pub monitor: String,
    /// Whether a lower or a higher value is an improvement.
    pub mode: Mode,
    /// The factor by which the rate is multiplied, below 1.
    pub factor: f64,
    /// The number of values without improvement with which the rate stays unchanged. After one more
    /// value without improvement, the rate is reduced.
    pub patience: i64,
    /// The smallest difference from the best value that counts as an improvement.
    pub threshold: f64,
    /// Whether `threshold` is relative to the best value or an absolute difference.
    pub threshold_mode: ThresholdMode,
    /// The number of values after a reduction of the rate that do not count as values without
    /// improvement.
    pub cooldown: i64,
    /// The lowest rate.
    pub min_lr: f64,
    /// If the change of the rate would be at most this number, the rate stays unchanged.
    pub eps: f64,
}

impl Default for ReduceLrOnPlateau {
    fn default() -> Self {
        Self {
            monitor: "val_loss".to_owned(),
            mode: Mode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

impl BuildScheduler for ReduceLrOnPlateau {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        if !(0.0..1.0).contains(&self.factor) {
            return Err(Error::config(format!(
                "scheduler: factor is {}, but must be in [0, 1)",
                self.factor
            )));
        }
        for (name, value) in [("patience", self.patience), ("cooldown", self.cooldown)] {
            if value < 0 {
                return Err(Error::config(format!(
                    "scheduler: {name} is {value}, but must be at least 0"
                )));
            }
        }
        for (name, value) in
            [("threshold", self.threshold), ("min_lr", self.min_lr), ("eps", self.eps)]
        {
            within(name, value, value >= 0.0, "at least 0")?;
        }
        let best = match self.mode {
            Mode::Min => f64::INFINITY,
            Mode::Max => f64::NEG_INFINITY,
        };
        let options = self.clone();
        Ok(Box::new(Plateau { options, rates: base, best, bad_epochs: 0, cooldown: 0 }))
    }

    fn monitor(&self) -> Option<&str> {
        Some(&self.monitor)
    }
}

#[derive(Clone)]
struct Plateau {
    options: ReduceLrOnPlateau,
    rates: Rates,
    best: f64,
    bad_epochs: i64,
    /// The number of epochs for which the cooldown still lasts.
    cooldown: i64,
}

impl Plateau {
    /// Returns whether the value is better than the best value so far. NaN is never better.
    fn is_better(&self, value: f64) -> bool {
        let ReduceLrOnPlateau { mode, threshold, threshold_mode, .. } = self.options;
        match (threshold_mode, mode) {
            (ThresholdMode::Abs, mode) => mode.better(value, self.best, threshold),
            // For a negative best value, the sign before `threshold` is reversed. Torch does not
            // reverse it, so a value somewhat worse than the best value counts as an improvement
            // there.
            (ThresholdMode::Rel, Mode::Min) if self.best < 0.0 => {
                value < self.best * (threshold + 1.0)
            }
            (ThresholdMode::Rel, Mode::Max) if self.best < 0.0 && self.best.is_finite() => {
                value > self.best * (1.0 - threshold)
            }
            (ThresholdMode::Rel, Mode::Min) => value < self.best * (1.0 - threshold),
            (ThresholdMode::Rel, Mode::Max) => value > self.best * (threshold + 1.0),
        }
    }
}

impl Scheduler for Plateau {
    fn rates(&self) -> Rates {
        self.rates
    }

    fn advance(&mut self, monitored: Option<f64>) {
        let Some(value) = monitored else {
            return;
        };
        if self.is_better(value) {
            self.best = value;
            self.bad_epochs = 0;
        } else {
            self.bad_epochs += 1;
        }
        if self.cooldown > 0 {
            self.cooldown -= 1;
            self.bad_epochs = 0;
        }
        if self.bad_epochs > self.options.patience {
            let lr = (self.rates.lr * self.options.factor).max(self.options.min_lr);
            if self.rates.lr - lr > self.options.eps {
                self.rates.lr = lr;
            }
            self.cooldown = self.options.cooldown;
            self.bad_epochs = 0;
        }
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &"ReduceLROnPlateau")?;
        // The best value is saved as text, because it is infinite at first, and JSON has no
        // infinity.
        state.put(BEST, &self.best.to_string())?;
        state.put(BAD_EPOCHS, &self.bad_epochs)?;
        state.put(COOLDOWN, &self.cooldown)?;
        saved::put_rates(&mut state, saved::LAST, self.rates)?;
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        saved::same_layout(&self.state()?, state)?;
        let best: String = state.get(BEST)?;
        let best = best.parse().map_err(|_| {
            Error::config(format!("state `{BEST}` is {best}, but must be a number written as text"))
        })?;
        let (bad_epochs, cooldown) = (state.get(BAD_EPOCHS)?, state.get(COOLDOWN)?);
        let rates = saved::get_rates(state, saved::LAST)?;
        *self = Self { options: self.options.clone(), rates, best, bad_epochs, cooldown };
        Ok(())
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

const BEST: &str = "best";
const BAD_EPOCHS: &str = "num_bad_epochs";
const COOLDOWN: &str = "cooldown_counter";
