//! How far rounding alone moves a model's gradients. It is asked where a gradient is beyond the bounds that hold
//! for most models: deep networks with batch statistics turn a rounding into percents.

use amp_core::Result;

use super::{Checks, reference::Figures};
use crate::{
    gate::{conformance::tolerance_limit, reason::Reason},
    text::percent,
};

/// The largest bound of a gradient's size that still tells something.
const LARGEST: f64 = 0.5;

impl Checks<'_> {
    /// The bounds of a model whose gradients rounding alone moves further than these, as deep networks with batch
    /// statistics have: upper tolerance limits of what emulated rounding does in each step.
    pub(super) fn swayed(&mut self, least: [f64; 2]) -> Result<[f64; 2]> {
        let steps = self.setup.swayed()?;
        let limit = |of: &dyn Fn(&Figures) -> f64| tolerance_limit(steps.iter().map(of));
        let bounds = [limit(&|step| step.projection), limit(&|step| step.parameter)];
        let bounds = [bounds[0].max(least[0]), bounds[1].max(least[1])];
        // A gradient that may be half as long, or of another direction, shows nothing.
        Ok(bounds.map(|bound| match bound {
            bound if bound < LARGEST => bound,
            bound => {
                let why = format!(
                    "rounding alone may move this model's gradients by {}, which tells nothing: they are shown \
                     and not judged",
                    percent(bound)
                );
                self.findings.left_out(Reason::Gradient, &why);
                f64::INFINITY
            }
        }))
    }
}
