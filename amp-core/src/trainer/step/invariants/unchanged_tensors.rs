//! Checks tensors that validations and skipped steps must not change.

use std::rc::Rc;

use super::{Invariant, Moment, Rule, run_state::RunView, sampled_tensors::Samples};
use crate::{Result, nn::Role, optim::Rates, trainer::config::NonFinite};

/// Checks that validation changes no parameter and no buffer.
#[derive(Default)]
pub(super) struct EvaluationMovesNothing {
    before: Option<Rc<Samples>>,
}

impl Rule for EvaluationMovesNothing {
    fn invariant(&self) -> Invariant {
        Invariant::EvaluationMovesNothing
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::EvaluationBegins, Moment::EvaluationEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        if moment == Moment::EvaluationBegins {
            self.before = Some(seen.samples()?);
            return Ok(None);
        }
        let Some(before) = self.before.take() else { return Ok(None) };
        Ok(moved(&before, &*seen.samples()?).map(|(name, role)| {
            let cause = match role {
                Role::Parameter => "code of the validation writes to it",
                Role::Buffer => {
                    "a layer runs in training mode, or code of the validation writes to it"
                }
            };
            format!(
                "`{name}` has changed, although validation trains nothing: {cause}; run layers in the context \
                 of the step (`step.context()`) and keep counts of your own in `#[state]`"
            )
        }))
    }
}

/// Checks that a skipped step changes no parameter, no buffer and no learning rate.
#[derive(Default)]
pub(super) struct SkipsChangeNothing {
    before: Option<Before>,
}

/// The state of a run before a step.
struct Before {
    samples: Rc<Samples>,
    /// The learning rate and momentum of each parameter group of each optimizer.
    rates: Vec<Vec<Rates>>,
    applied: u64,
    skipped: u64,
}

impl Rule for SkipsChangeNothing {
    fn invariant(&self) -> Invariant {
        Invariant::SkipsChangeNothing
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::StepBegins, Moment::StepEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        let (config, counts) = (seen.state.config, seen.state.counts);
        let recovery = &config.recovery;
        if recovery.skipped_step_advances || recovery.on_non_finite == NonFinite::RestoreLastGood {
            return Ok(None);
        }
        // Nothing is compared while steps are in flight: they may still be skipped, and may change
        // weights while these are read.
        if seen.running > 0 {
            self.before = None;
            return Ok(None);
        }
        let rates = || seen.scheduled().iter().map(|one| one.optimizer.rates()).collect::<Vec<_>>();
        if moment == Moment::StepBegins {
            self.before = Some(Before {
                samples: seen.samples()?,
                rates: rates(),
                applied: counts.applied,
                skipped: counts.skipped,
            });
            return Ok(None);
        }
        let Some(before) = self.before.take() else { return Ok(None) };
        let skipped = counts.applied == before.applied && counts.skipped > before.skipped;
        if !skipped {
            return Ok(None);
        }
        let now = seen.samples()?;
        let advice = "change it only if the step's outcome is `Applied`, or set \
                      recovery.skipped_step_advances";
        let manual = seen.model.optimizes_manually();
        // In manual optimization, the model itself decides which buffers a skipped step changes, so
        // only parameters are compared.
        let moved =
            moved(&before.samples, &now).filter(|(_, role)| !manual || *role == Role::Parameter);
        if let Some((name, _)) = moved {
            return Ok(Some(format!(
                "`{name}` has changed, although the step was skipped: a hook, a callback or the \
                 optimizer writes to it whether or not the step is applied; {advice}"
            )));
        }
        Ok((before.rates != rates()).then(|| {
            format!(
                "a learning rate has changed, although the step was skipped: a hook, a callback or \
                 the optimizer sets it whether or not the step is applied; {advice}"
            )
        }))
    }
}

/// Returns the first tensor that has changed.
fn moved(before: &Samples, now: &Samples) -> Option<(String, Role)> {
    let found = before.pairs(now).find(|pair| pair.moved())?;
    Some((found.tensor.name.clone(), found.tensor.role))
}
