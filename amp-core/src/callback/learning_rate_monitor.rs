use super::{Action, Callback};
use crate::{Hook, Result, log::LogOptions, precision::StepOutcome};

/// Logs the learning rate that the next step will take, and the momentum where a schedule moves
/// it (lightning.pytorch.callbacks.LearningRateMonitor): `lr`, `momentum`, with the numbers of the
/// optimizer and the parameter group behind slashes where there are several.
#[derive(Debug, Clone, Default)]
pub struct LearningRateMonitor {
    momentum: bool,
}

impl LearningRateMonitor {
    /// The learning rate alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// The momentum too.
    #[must_use]
    pub fn log_momentum(mut self) -> Self {
        self.momentum = true;
        self
    }
}

impl Callback for LearningRateMonitor {
    fn name(&self) -> String {
        "LearningRateMonitor".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if outcome.is_none() {
            return Ok(Vec::new());
        }
        let several = hook.optimizers().len() > 1;
        let rates: Vec<_> = hook.optimizers().iter().map(|s| s.optimizer.rates()).collect();
        for (optimizer, groups) in rates.into_iter().enumerate() {
            let grouped = groups.len() > 1;
            for (group, rates) in groups.into_iter().enumerate() {
                let name = |value: &str| match (several, grouped) {
                    (false, false) => value.to_owned(),
                    (true, false) => format!("{value}/{optimizer}"),
                    (false, true) => format!("{value}/group{group}"),
                    (true, true) => format!("{value}/{optimizer}/group{group}"),
                };
                hook.log_number(&name("lr"), rates.lr, LogOptions::ON_STEP)?;
                if let (true, Some(momentum)) = (self.momentum, rates.momentum) {
                    hook.log_number(&name("momentum"), momentum, LogOptions::ON_STEP)?;
                }
            }
        }
        Ok(Vec::new())
    }
}
