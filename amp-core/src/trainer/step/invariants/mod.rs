//! The invariants of training: rules that hold in every run, whatever the model, optimizer or
//! precision. Checks detect a violation.
//!
//! Each [`Rule`] is checked at certain [`Moment`]s. The [`Clock`](check_interval::Clock) decides
//! which steps are checked: every step, or so few steps that the checks cost almost no time. A rule
//! never changes the run and never keeps tensors. For later comparisons it keeps only a few
//! elements of each tensor, on the host.

mod check_interval;
mod dtypes;
mod evaluation;
mod gradients;
mod learning_rates;
mod loss_scale;
mod memory;
mod optimizer_parameters;
mod run_state;
mod sampled_tensors;
mod shapes;
mod shared_examples;
mod unchanged_tensors;
mod weights;

use serde::{Deserialize, Serialize};

use self::{check_interval::Clock, run_state::RunView};
use super::state::StepState;
use crate::{
    Error, LightningModule, Result,
    data::DataModule,
    named::named,
    trainer::config::{Check, Loops, TrainerConfig},
};

/// Rules that hold in every training run. Their names appear in [`Error::Invariant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Invariant {
    /// A parameter with a gradient changes within the first ten applied steps, unless the learning
    /// rate is 0 or the update is smaller than the spacing of the parameter's dtype.
    WeightsMove,
    /// Each trained parameter belongs to an optimizer, which updates the same tensor that the model
    /// uses. A step does not change which parameters are trained. A 16-bit weight equals its f32
    /// master weight, rounded to 16 bits.
    OptimizerHoldsWeights,
    /// No gradient is left when a step begins.
    GradientsAreCleared,
    /// Optimizers step with the rates of their schedules, which advance once per applied step.
    RatesAreScheduled,
    /// Parameters and buffers keep their dtypes, shapes and devices. No buffer is replaced by
    /// another tensor.
    DtypesStay,
    /// The loss scale grows after enough steps and falls after an overflow, as in
    /// torch.amp.GradScaler. The host and the device have the same loss scale.
    ScaleFollowsRule,
    /// Validation changes no parameter and no buffer.
    EvaluationMovesNothing,
    /// A skipped step changes no parameter, no buffer and no learning rate.
    SkipsChangeNothing,
    /// No validation example is a training example.
    SetsAreDisjoint,
    /// Validation runs the model in evaluation mode.
    EvaluationMode,
    /// No elementwise operation of a step or a validation combines an output `[N, 1]` with a target
    /// `[N]`, or an output `[N]` with a target `[N, 1]`, which libtorch broadcasts to `[N, N]`. An
    /// output whose second dimension the code added with `unsqueeze` is accepted.
    ShapesFit,
    /// No memory meter is started while an earlier one measures, because the earlier one would then
    /// report too little memory.
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
    ShapesFit => "shapes-fit",
    MemoryOverStep => "memory-over-step",
});

/// A moment of a run at which rules are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::trainer) enum Moment {
    /// Before the first step of a run, including a resumed run.
    Start,
    /// Before a step is started.
    StepBegins,
    /// Within a step that runs without a CUDA graph, after the old gradients are dropped and before
    /// the backward passes.
    GradientsCleared,
    /// After a step was applied or skipped, and was reported.
    StepEnds,
    EvaluationBegins,
    EvaluationEnds,
    EpochEnds,
}

/// A check of one invariant.
trait Rule {
    fn invariant(&self) -> Invariant;

    /// Returns the moments at which the invariant is checked.
    fn moments(&self) -> &'static [Moment];

    /// Checks the invariant at this moment. Returns `None` if it holds, and otherwise the text of
    /// the error: the tensor or setting, what was observed, the likely cause and the remedy.
    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>>;
}

/// All invariants that a run checks.
pub(in crate::trainer) struct Invariants {
    clock: Clock,
    rules: Vec<Box<dyn Rule>>,
}

impl Invariants {
    /// Creates the rules for a run of `model` on `data`.
    pub(in crate::trainer) fn new(
        config: &TrainerConfig,
        loops: &Loops,
        model: &dyn LightningModule,
        data: &DataModule,
    ) -> Self {
        let level = config.checks.level;
        let manual = model.optimizes_manually();
        let mut rules: Vec<Box<dyn Rule>> = vec![
            Box::new(optimizer_parameters::OptimizerHoldsWeights::default()),
            Box::new(dtypes::DtypesStay::default()),
            Box::new(gradients::GradientsAreCleared),
            Box::new(shapes::ShapesFit::new(level == Check::Full)),
            Box::new(memory::MemoryOverStep::default()),
            Box::new(learning_rates::RatesAreScheduled::new(manual)),
            Box::new(evaluation::EvaluationMode::new(level == Check::Full)),
            Box::new(unchanged_tensors::EvaluationMovesNothing::default()),
            Box::new(unchanged_tensors::SkipsChangeNothing::default()),
        ];
        if !manual {
            // The following two rules do not apply to manual steps, which may leave gradients that
            // no optimizer uses, and may change the loss scale themselves.
            rules.push(Box::new(weights::WeightsMove::default()));
            rules.push(Box::new(loss_scale::ScaleFollowsRule::default()));
        }
        if !config.checks.shared_examples && loops.overfit_batches.is_none() {
            let rule =
                shared_examples::SetsAreDisjoint::new(data, config.seed, level == Check::Full);
            rules.push(Box::new(rule));
        }
        Self { clock: Clock::new(level), rules }
    }

    /// Checks those invariants that are due at this moment. `running` is the number of steps in
    /// flight.
    ///
    /// # Errors
    /// [`Error::Invariant`] when a rule is violated.
    #[inline]
    pub(in crate::trainer) fn at(
        &mut self,
        moment: Moment,
        state: &StepState<'_>,
        model: &dyn LightningModule,
        running: u64,
    ) -> Result<()> {
        match self.clock.is_due(moment, &state.counts, running) {
            true => self.ask(moment, &RunView::new(model, state, running)),
            false => Ok(()),
        }
    }

    fn ask(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<()> {
        for rule in &mut self.rules {
            if rule.moments().contains(&moment)
                && let Some(broken) = rule.violation(moment, seen)?
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

/// Returns the beginning of a violation's message, which names the step, counted from 1.
fn when(moment: Moment, seen: &RunView<'_>) -> String {
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
