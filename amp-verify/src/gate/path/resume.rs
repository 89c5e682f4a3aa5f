//! Checks in short training runs that gradients are clipped, and that a run can be saved half way
//! and resumed in a new model.

use amp_core::Result;

use super::{
    Checks,
    final_state::FinalState,
    run::{self, LOW_SCALE, STEPS, Scenario},
    tolerance::Tolerance,
};
use crate::{faults::Fault, gate::reason::Reason};

impl Checks<'_> {
    /// Checks the steps of a run whose gradients are clipped to the norm `limit`, whatever limit
    /// the model declares. Then checks that such a run can be saved and resumed.
    pub(super) fn clipped(&mut self, limit: f64) -> Result<()> {
        if !(limit > 0.0 && limit.is_finite()) {
            self.findings.left_out(
                Reason::Resume,
                "the gradient norms of an epoch give no norm for \
                    clipping: they are zero or not finite",
            );
            return Ok(());
        }
        let scenario = Scenario::Clipped(limit);
        let what = format!("{STEPS} steps clipped to a norm of {limit:.3}");
        let plain = self.setup.plain(scenario)?;
        let (observed, observation, _) = self.setup.observed(scenario)?;
        self.same(scenario, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        self.resume(scenario, &plain)
    }

    /// Compares two runs with the uninterrupted run `plain`: one that is saved half way and goes
    /// on, and one that resumes from the saved file in a new model.
    fn resume(&mut self, scenario: Scenario, plain: &FinalState) -> Result<()> {
        let folder = run::folder()?;
        let path = folder.path().join("half.safetensors");
        let whole = self.setup.saved(scenario, STEPS / 2, &path)?;
        let resumed = self.setup.resumed(scenario, &path, STEPS / 2)?;
        let is_cuda = self.setup.case.trainer.device.is_cuda();
        for (what, state) in
            [("a run that was saved half way", &whole), ("a resumed run", &resumed)]
        {
            let tolerance = match is_cuda {
                true => self.tolerance(scenario, plain, state)?,
                false => Tolerance::default(),
            };
            let difference = match Fault::loses_state(self.setup.job.fault) {
                // This fault of the self-test makes the resumed run count its steps from zero. So
                // only the tensors are compared.
                true => plain.tensors_differ(state, &tolerance)?,
                false => plain.difference(state, &tolerance)?,
            };
            let wrong = difference.map(|difference| {
                format!(
                    "{what} differs from an uninterrupted run, whose values are named first: \
                    {difference}"
                )
            });
            let compared = format!("{what}: weights, optimizer state, schedules, loss scale");
            let half = STEPS / 2;
            let over = format!("saved after {half} of {STEPS} steps, loss scale {LOW_SCALE}");
            self.findings.equal(Reason::Resume, compared, over, wrong);
        }
        Ok(())
    }
}
