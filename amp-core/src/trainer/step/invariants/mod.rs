//! Rules that hold in every training run, whatever model, optimizer or precision, and the looks at a run
//! that show a broken one.
//!
//! Each [`Rule`] is asked at some [`Moment`]s. The [clock] decides at which of them a run is looked at:
//! in every step, or so rarely that it costs nothing. A rule never changes the run, and never keeps
//! tensors: what it compares later are a few elements of each, on the host.

mod clock;
mod dtypes;
mod evaluation;
mod gradients;
mod held;
mod memory;
mod rates;
mod samples;
mod scale;
mod seen;
mod sets;
mod still;
mod weights;

use serde::{Deserialize, Serialize};

use self::{clock::Clock, seen::Seen};
use super::state::StepState;
use crate::{
    Error, LightningModule, Result,
    data::DataModule,
    named::named,
    trainer::config::{Check, Loops, TrainerConfig},
};

/// Rules that hold in every training run. The names are those that an
/// [`Error::Invariant`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Invariant {
    /// A parameter with a gradient moves within the first ten applied steps, unless its rate is 0 or its
    /// update is finer than the spacing of its dtype.
    WeightsMove,
    /// Each trained parameter is held by an optimizer, as the very tensor that the model has; a step does
    /// not change which parameters are trained; f32 masters are the weights.
    OptimizerHoldsWeights,
    /// No gradient is left when a step begins.
    GradientsAreCleared,
    /// Optimizers step at the rates of their schedules, which advance once in an applied step.
    RatesAreScheduled,
    /// Parameters and buffers keep their dtypes, shapes and devices.
    DtypesStay,
    /// The loss scale grows and backs off as the rule says, and is the same on the host and the device.
    ScaleFollowsRule,
    /// Validation moves no parameter and no buffer.
    EvaluationMovesNothing,
    /// A skipped step moves no parameter, no buffer and no rate.
    SkipsChangeNothing,
    /// No example of a validation set is one of the training set.
    SetsAreDisjoint,
    /// Validated values are computed in evaluation mode.
    EvaluationMode,
    /// Memory is read over all of what a meter measures: none was started meanwhile.
    MemoryOverStep,
}

named!(Invariant, "invariant", {
    WeightsMove => "weights-move",
    OptimizerHoldsWeights => "optimizer-holds-weights",
    GradientsAreCleared => "gradients-are-cleared",
    RatesAreScheduled => "rates-are-scheduled",
    DtypesStay => "dtypes-stay",
    ScaleFollowsRule => "scale-follows-rule",
    EvaluationMovesNothing => "evaluation-moves-nothing",
    SkipsChangeNothing => "skips-change-nothing",
    SetsAreDisjoint => "sets-are-disjoint",
    EvaluationMode => "evaluation-mode",
    MemoryOverStep => "memory-over-step",
});

/// A moment of a run at which rules are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trainer) enum Moment {
    /// Before the first step of a run, also of a resumed one.
    Start,
    /// Before a step.
    StepBegins,
    /// Within a step that runs kernel by kernel, before its backward passes.
    GradientsCleared,
    /// After a step was applied or skipped and is reported.
    StepEnds,
    EvaluationBegins,
    EvaluationEnds,
    EpochEnds,
}

/// A rule that holds in every run.
trait Rule {
    fn invariant(&self) -> Invariant;

    /// When it is asked.
    fn moments(&self) -> &'static [Moment];

    /// What breaks it at this moment: a clause that begins with the tensor or the setting, says what was
    /// seen, and gives the cause and what to do.
    fn broken(&mut self, moment: Moment, seen: &Seen<'_>) -> Result<Option<String>>;
}

/// The rules that a run is held against.
pub(in crate::trainer) struct Invariants {
    clock: Clock,
    rules: Vec<Box<dyn Rule>>,
}

impl Invariants {
    /// Those of a run of `model` on `data`.
    pub(in crate::trainer) fn new(
        config: &TrainerConfig,
        loops: &Loops,
        model: &dyn LightningModule,
        data: &DataModule,
    ) -> Self {
        let level = config.checks.level;
        let manual = model.optimizes_manually();
        let mut rules: Vec<Box<dyn Rule>> = vec![
            Box::new(held::OptimizerHoldsWeights::default()),
            Box::new(dtypes::DtypesStay::default()),
            Box::new(gradients::GradientsAreCleared),
            Box::new(memory::MemoryOverStep::default()),
            Box::new(rates::RatesAreScheduled::new(manual)),
            Box::new(evaluation::EvaluationMode::new(level == Check::Full)),
            Box::new(still::EvaluationMovesNothing::default()),
            Box::new(still::SkipsChangeNothing::default()),
        ];
        if !manual {
            // A manual step may leave gradients that no optimizer is to step by, and move the scale by its
            // own rule.
            rules.push(Box::new(weights::WeightsMove::default()));
            rules.push(Box::new(scale::ScaleFollowsRule::default()));
        }
        if !config.checks.shared_examples && loops.overfit_batches.is_none() {
            rules.push(Box::new(sets::SetsAreDisjoint::new(data, level == Check::Full)));
        }
        Self { clock: Clock::new(level), rules }
    }

    /// Holds the run against the rules, if it is looked at now. `running` steps are on the device.
    ///
    /// # Errors
    /// [`Error::Invariant`] when a rule is broken.
    #[inline]
    pub(in crate::trainer) fn at(
        &mut self,
        moment: Moment,
        state: &StepState<'_>,
        model: &dyn LightningModule,
        running: u64,
    ) -> Result<()> {
        match self.clock.is_due(moment, &state.counts, running) {
            true => self.ask(moment, &Seen::new(model, state, running)),
            false => Ok(()),
        }
    }

    fn ask(&mut self, moment: Moment, seen: &Seen<'_>) -> Result<()> {
        for rule in &mut self.rules {
            if rule.moments().contains(&moment)
                && let Some(broken) = rule.broken(moment, seen)?
            {
                let name = rule.invariant().name();
                let when = when(moment, seen);
                return Err(Error::Invariant {
                    name,
                    text: format!("{when}{broken} (invariant {name})"),
                });
            }
        }
        Ok(())
    }
}

/// The step, counted from 1, that a text is about.
fn when(moment: Moment, seen: &Seen<'_>) -> String {
    let ended = seen.state.counts.attempts;
    match moment {
        Moment::Start if ended == 0 => "before step 1: ".to_owned(),
        Moment::Start => format!("before step {} of a resumed run: ", ended + 1),
        Moment::StepBegins | Moment::GradientsCleared => {
            format!("step {}: ", ended + seen.running + 1)
        }
        Moment::StepEnds => format!("step {ended}: "),
        Moment::EvaluationBegins | Moment::EvaluationEnds => {
            format!("validation after step {ended}: ")
        }
        Moment::EpochEnds => format!("end of the epoch, after step {ended}: "),
    }
}
