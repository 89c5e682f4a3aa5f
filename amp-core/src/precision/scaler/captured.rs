//! The methods of the gradient scaler for a step that runs as a CUDA graph. Only after such a step
//! does the host learn whether it was skipped.

use tch::Tensor;

use super::{GradScaler, Mode, planted};
use crate::Result;

impl GradScaler {
    /// Sets `skip_flag`, an f32 scalar on the device, to 1 if a loss or gradient since the last
    /// update was not finite. Otherwise leaves the flag unchanged.
    pub(crate) fn note_non_finite(&self, skip_flag: &Tensor) -> Result<()> {
        for seen in &self.iteration {
            // A NaN in `found_inf` counts as true in this operation.
            let _ = skip_flag.shallow_clone().f_logical_or_(&seen.found_inf.on(self.device)?)?;
        }
        Ok(())
    }

    /// Updates the scale and the growth tracker on the device as [`update`](Self::update) does
    /// after a step without overflow. If the step was skipped, the host later undoes this with
    /// [`write_device`](Self::write_device). The host's copies do not change.
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

    /// Updates the host's copies of the scale and of the growth tracker. Called when the host has
    /// learnt that a captured step was applied.
    pub(crate) fn follow_applied(&mut self) {
        if self.mode == Mode::Scale {
            self.mirror = self.config.next(self.mirror, false);
        }
    }

    /// Writes the host's copies of the scale and of the growth tracker to the device.
    pub(crate) fn write_device(&self) -> Result<()> {
        let _ = self.scale.shallow_clone().f_fill_(f64::from(self.mirror.0))?;
        let _ = self.growth_tracker.shallow_clone().f_fill_(i64::from(self.mirror.1))?;
        Ok(())
    }
}
