//! Clipped steps, and a run that is saved on its way and continued in a new model.

use amp_core::Result;

use super::{
    Checks,
    left::Left,
    run::{self, CALM, STEPS, Way},
};
use crate::{faults::Fault, gate::reason::Reason};

impl Checks<'_> {
    /// A run with effective clipping, whatever the model's own limit is, and a run that is saved and
    /// resumed.
    pub(super) fn clipped(&mut self, limit: f64) -> Result<()> {
        if !(limit > 0.0 && limit.is_finite()) {
            self.findings.left_out(Reason::Resume, "the gradients have no size to clip by");
            return Ok(());
        }
        let way = Way::Clipped(limit);
        let what = format!("{STEPS} steps clipped to a norm of {limit:.3}");
        let plain = self.setup.plain(way)?;
        let (watched, seen, _) = self.setup.watched(way)?;
        self.same(way, &what, &plain, &watched)?;
        self.followed(&what, &seen);
        self.resume(way, &plain)
    }

    /// Saves half way and continues in a new model.
    fn resume(&mut self, way: Way, plain: &Left) -> Result<()> {
        let folder = run::folder()?;
        let path = folder.path().join("half.safetensors");
        let whole = self.setup.saved(way, STEPS / 2, &path)?;
        let resumed = self.setup.resumed(way, &path, STEPS / 2)?;
        let is_cuda = self.setup.case.trainer.device.is_cuda();
        for (what, left) in
            [("a run that was saved on its way", &whole), ("a resumed run", &resumed)]
        {
            let tolerance = if is_cuda { self.tolerance(way, plain, left)? } else { 0.0 };
            let difference = match Fault::loses_state(self.setup.job.fault) {
                // Its counts start again.
                true => plain.tensors_differ(left, tolerance)?,
                false => plain.difference(left, tolerance)?,
            };
            let wrong = difference.map(|difference| {
                format!("{what} differs from one that was not stopped: {difference}")
            });
            let compared = format!("{what}: weights, optimizer state, schedules, scale");
            let half = STEPS / 2;
            let over = format!("saved after {half} of {STEPS} steps at a scale of {CALM}");
            self.findings.equal(Reason::Resume, compared, over, wrong);
        }
        Ok(())
    }
}
