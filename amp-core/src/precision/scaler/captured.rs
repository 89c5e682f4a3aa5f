//! The methods of the gradient scaler for a step that runs as a CUDA graph. The host reads the
//! outcome of such a step only after the step.

use tch::Tensor;

use super::{GradScaler, Mode, planted};
use crate::Result;

impl GradScaler {
    /// Sets `skip_flag`, an f32 scalar on the device, to 1 if a loss or gradient since the last
    /// update was not finite. If all losses and gradients were finite, does not change the flag.
    pub(crate) fn note_non_finite(&self, skip_flag: &Tensor) -> Result<()> {
        for seen in &self.iteration {
            // A NaN in `found_inf` counts as true in this operation.
            let _ = skip_flag.shallow_clone().f_logical_or_(&seen.found_inf.on(self.device)?)?;
        }
        Ok(())
    }

    /// Updates the scale on the device as [`update`](Self::update) does after an applied step. The
    /// host's copy of the scale does not change.
    pub(crate) fn update_applied(&mut self) -> Result<()> {
        self.end_iteration();
        if self.mode != Mode::Scale {
            return Ok(());
        }
        let _ = self.scale.f_internal_amp_update_scale_(
            &self.growth_tracker,
            &self.no_overflow,
            self.config.growth_factor,
            self.config.backoff_factor,
            planted::device_interval(self.config.growth_interval),
        )?;
        Ok(())
    }

    /// Discards the records of losses and gradients since the last update. Does not change the
    /// scale.
    pub(crate) fn forget(&mut self) {
        self.end_iteration();
    }

    /// Updates the host's copy of the scale and of the growth tracker, once the host knows that a
    /// step was applied.
    pub(crate) fn follow_applied(&mut self) {
        if self.mode == Mode::Scale {
            self.mirror = self.config.next(self.mirror, false);
        }
    }

    /// Writes the host's copy of the scale and of the growth tracker to the device.
    pub(crate) fn write_device(&self) -> Result<()> {
        let _ = self.scale.shallow_clone().f_fill_(f64::from(self.mirror.0))?;
        let _ = self.growth_tracker.shallow_clone().f_fill_(i64::from(self.mirror.1))?;
        Ok(())
    }
}
