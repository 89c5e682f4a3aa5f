use super::{Action, Callback};
use crate::{
    Hook, Result,
    log::LogOptions,
    module::StepAccess,
    optim::{GroupRates, Scheduled},
    precision::StepOutcome,
};

/// Logs the learning rate of the next step, and on request the momentum, under the names that
/// lightning.pytorch.callbacks.LearningRateMonitor uses: `lr-AdamW`, `lr-AdamW/pg2` for the second
/// parameter group, `lr-AdamW-1` for a second optimizer, `lr-AdamW-momentum`.
#[derive(Debug, Clone, Default)]
pub struct LearningRateMonitor {
    momentum: bool,
}

impl LearningRateMonitor {
    /// Creates a callback that logs only the learning rate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Logs the momentum as well as the learning rate.
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

    fn step_access(&self) -> StepAccess {
        StepAccess::PerStep
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if outcome.is_none() {
            return Ok(Vec::new());
        }
        let rates: Vec<GroupRates> = hook.optimizers().iter().flat_map(Scheduled::rates).collect();
        let grouped = rates.iter().any(|rates| rates.group > 0);
        for GroupRates { optimizer, group, rates } in rates {
            let group = if grouped { format!("/pg{}", group + 1) } else { String::new() };
            hook.log_number(&format!("lr-{optimizer}{group}"), rates.lr, LogOptions::ON_STEP)?;
            if let (true, Some(momentum)) = (self.momentum, rates.momentum) {
                let name = format!("lr-{optimizer}-momentum{group}");
                hook.log_number(&name, momentum, LogOptions::ON_STEP)?;
            }
        }
        Ok(Vec::new())
    }
}
