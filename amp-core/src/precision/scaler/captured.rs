//! The scaler in a captured step, whose outcome the host learns later.

use tch::Tensor;

use super::{GradScaler, Mode, planted};
use crate::Result;

impl GradScaler {
    /// Sets `void`, an f32 scalar on the device, to 1 if a loss or gradient since the last update
    /// was not finite. It stays 1 otherwise.
    pub(crate) fn note_non_finite(&self, void: &Tensor) -> Result<()> {
        for seen in &self.iteration {
            // NaN counts as true.
            let _ = void.shallow_clone().f_logical_or_(&seen.found_inf.on(self.device)?)?;
        }
        Ok(())
    }

    /// [`update`](Self::update) after a step that is taken to have been applied. If it was not,
    /// [`write_device`](Self::write_device) takes it back; if it was,
    /// [`follow_applied`](Self::follow_applied) tells the host's half.
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

    /// Forgets what was unscaled since the last update.
    pub(crate) fn forget(&mut self) {
        self.end_iteration();
    }

    /// Follows an applied step on the host.
    pub(crate) fn follow_applied(&mut self) {
        if self.mode == Mode::Scale {
            self.mirror = self.config.next(self.mirror, false);
        }
    }

    /// Makes the device's half that of the host.
    pub(crate) fn write_device(&self) -> Result<()> {
        let _ = self.scale.shallow_clone().f_fill_(f64::from(self.mirror.0))?;
        let _ = self.growth_tracker.shallow_clone().f_fill_(i64::from(self.mirror.1))?;
        Ok(())
    }
}
