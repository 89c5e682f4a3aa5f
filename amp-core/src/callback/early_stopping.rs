use super::{Action, Callback, Epoch, Mode};
use crate::{Error, Hook, Result, module::StepAccess, state::State};

/// Ends a run when the monitored value has stopped improving, or is NaN or infinite
/// (lightning.pytorch.callbacks.EarlyStopping). The callback checks the value whenever the value is
/// reported: at the end of each epoch, or at each validation within an epoch.
///
/// ```
/// use amp_core::{callback::{EarlyStopping, Mode}, prelude::*};
///
/// let config = TrainerConfig::new(Precision::F32True, Device::Cpu);
/// let stopping = EarlyStopping::new("val_loss", Mode::Min).patience(5).min_delta(1e-3);
/// let trainer = Trainer::new(config).callback(stopping);
/// ```
#[derive(Debug, Clone)]
pub struct EarlyStopping {
    monitor: String,
    mode: Mode,
    patience: u32,
    min_delta: f64,
    best: Option<f64>,
    waited: u32,
}

impl EarlyStopping {
    /// Creates a callback that ends the run after three epochs without any improvement.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::{
    ///     callback::{EarlyStopping, Mode},
    ///     prelude::*,
    /// };
    ///
    /// let stop = EarlyStopping::new("val_loss", Mode::Min).patience(5);
    /// let trainer = Trainer::new(TrainerConfig::new(Precision::F32True, Device::Cpu)).callback(stop);
    /// # let _ = trainer;
    /// ```
    pub fn new(monitor: impl Into<String>, mode: Mode) -> Self {
        Self { monitor: monitor.into(), mode, patience: 3, min_delta: 0.0, best: None, waited: 0 }
    }

    /// Ends the run after this number of epochs in a row without improvement. If the run validates
    /// within epochs, the number counts validations instead of epochs.
    #[must_use]
    pub fn patience(mut self, epochs: u32) -> Self {
        self.patience = epochs;
        self
    }

    /// Sets the smallest change of the monitored value that counts as an improvement.
    #[must_use]
    pub fn min_delta(mut self, min_delta: f64) -> Self {
        self.min_delta = min_delta;
        self
    }
}

impl Callback for EarlyStopping {
    fn name(&self) -> String {
        format!("EarlyStopping/{}", self.monitor)
    }

    fn monitors(&self) -> Option<&str> {
        Some(&self.monitor)
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put("best", &self.best)?;
        state.put("waited", &self.waited)?;
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        (self.best, self.waited) = (state.get("best")?, state.get("waited")?);
        Ok(())
    }

    fn on_train_start(&mut self, _: &mut Hook<'_>) -> Result<()> {
        let (monitor, delta) = (&self.monitor, self.min_delta);
        match delta >= 0.0 && delta.is_finite() {
            true => Ok(()),
            // With a negative `min_delta`, a value that gets worse could count as an improvement.
            false => Err(Error::config(format!(
                "EarlyStopping of `{monitor}`: min_delta is {delta}, but must be at least 0"
            ))),
        }
    }

    fn on_validation_end(&mut self, validation: &Epoch<'_>) -> Result<Vec<Action>> {
        self.on_epoch_end(validation)
    }

    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        if epoch.ended_early {
            // The run ends before this epoch is complete, so the epoch does not count as one
            // without improvement. A resumed run completes the epoch and judges it.
            return Ok(Vec::new());
        }
        let Self { monitor, mode, patience, min_delta, .. } = self;
        let Some(value) = epoch.reported(monitor)? else { return Ok(Vec::new()) };
        if !value.is_finite() {
            return Ok(vec![Action::Stop(format!("{monitor} is {value}"))]);
        }
        if self.best.is_none_or(|best| mode.better(value, best, *min_delta)) {
            self.best = Some(value);
            self.waited = 0;
            return Ok(Vec::new());
        }
        self.waited += 1;
        if self.waited < *patience {
            return Ok(Vec::new());
        }
        let best = self.best.unwrap_or(value);
        let failed = match mode {
            Mode::Min => "fallen below",
            Mode::Max => "risen above",
        };
        let delta = match *min_delta > 0.0 {
            true => format!(" by more than {min_delta}"),
            false => String::new(),
        };
        let units = if epoch.goes_on { "validations" } else { "epochs" };
        Ok(vec![Action::Stop(format!(
            "{monitor} has not {failed} {best:.5}{delta} for {patience} {units}"
        ))])
    }
}
