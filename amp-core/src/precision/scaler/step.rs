//! The scaler's optimizer steps, which are skipped if gradients overflowed.

use super::{Deferred, GradScaler, Gradients, StepOutcome, owner};
use crate::{
    Error, Result,
    optimizer::{OnDevice, Optimizer},
};

impl GradScaler {
    /// Steps the optimizer, unless a loss or gradient is not finite. Reads one number from the
    /// device.
    ///
    /// # Errors
    /// When the gradients belong to another optimizer or were unscaled before the last update,
    /// or the optimizer's kernel fails.
    pub fn step(
        &mut self,
        gradients: impl Into<Gradients<Deferred>>,
        optimizer: &mut dyn Optimizer,
    ) -> Result<StepOutcome> {
        let gradients = gradients.into();
        if self.overflowed(&gradients, optimizer)? {
            return Ok(StepOutcome::Skipped { culprit: gradients.first_non_finite()? });
        }
        optimizer.step_with(OnDevice { factor: gradients.factor(), found_inf: None })?;
        Ok(StepOutcome::Applied)
    }

    /// Steps all optimizers, or none if a loss or a gradient of any optimizer is not finite. For an
    /// optimizer without gradients, the step changes nothing.
    ///
    /// # Errors
    /// When gradients belong to another optimizer or were unscaled before the last update, or an
    /// optimizer's kernel fails.
    pub fn step_all(
        &mut self,
        steps: Vec<(Gradients<Deferred>, &mut (dyn Optimizer + 'static))>,
    ) -> Result<StepOutcome> {
        let mut culprit = None;
        for (gradients, optimizer) in &steps {
            if self.overflowed(gradients, &**optimizer)? && culprit.is_none() {
                culprit = Some(gradients.first_non_finite()?);
            }
        }
        if let Some(culprit) = culprit {
            return Ok(StepOutcome::Skipped { culprit });
        }
        for (gradients, optimizer) in steps {
            optimizer.step_with(OnDevice { factor: gradients.factor(), found_inf: None })?;
        }
        Ok(StepOutcome::Applied)
    }

    /// Returns whether a loss or gradient was not finite.
    fn overflowed(
        &mut self,
        gradients: &Gradients<Deferred>,
        optimizer: &dyn Optimizer,
    ) -> Result<bool> {
        if owner(optimizer.parameters()) != gradients.owner {
            return Err(Error::Scaler("these gradients belong to another optimizer".into()));
        }
        let Some(found_inf) = &gradients.found_inf else { return Ok(false) };
        let mut uses = self.iteration.iter_mut();
        let Some(seen) = uses.find(|seen| seen.owner == gradients.owner) else {
            return Err(Error::Scaler(
                "these gradients were unscaled before the last `update`: compute new gradients"
                    .into(),
            ));
        };
        Ok(*seen.overflowed.insert(found_inf.read()?))
    }
}
