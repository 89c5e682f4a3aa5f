//! What is done when a step is not finite, or its loss scale falls too low.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{callbacks::Emit, step::StepRunner};
use crate::{
    Error, LightningModule, Result,
    event::{Event, Recovery, Skipped},
    memory::{copy_of, tensor_bytes},
    named::named,
    nn::{self, named_tensors},
    precision::{GradScaler, Precision},
    state::State,
};

/// What is done about a step whose gradients are not finite. It is never applied, and its cause
/// is looked for.
///
/// A finite loss whose scaled gradients overflow is the scaler's own affair: under `16-mixed` the
/// step is left out and the scale backs off, whatever is chosen here. The choice decides about
/// the rest: a forward pass that is not finite, any such step under the other precisions, and
/// more than [`max_consecutive_skips`](super::TrainerConfig::max_consecutive_skips) in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NonFinite {
    /// Does not look, as Lightning does not: NaN reaches the weights. Saves a pass over the
    /// gradients and one host read a step; `16-mixed` looks anyway.
    Ignore,
    /// Leaves the step out; too many in a row end the run.
    #[default]
    Skip,
    /// Under `16-mixed`, runs the same examples again at the lower scale until they fit, so that
    /// none are lost; otherwise as [`Skip`](Self::Skip).
    LowerScale,
    /// Goes back to the weights, optimizer and schedule of the last good state, kept every
    /// [`keep_good_every_n_steps`](super::TrainerConfig::keep_good_every_n_steps), and on with
    /// the next examples. Coming back to one state twice without a step between ends the run.
    RestoreLastGood,
    /// Goes on in `bf16-mixed`; from `16-mixed` only.
    FallBackToBf16,
    /// Ends the run with the cause as its error.
    Stop,
}

named!(NonFinite, "policy", {
    Ignore => "ignore",
    Skip => "skip",
    LowerScale => "lower-scale",
    RestoreLastGood => "restore-last-good",
    FallBackToBf16 => "fall-back-to-bf16",
    Stop => "stop",
});

/// How low the loss scale may fall; PyTorch has no floor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScaleFloor {
    /// The lowest scale that training goes on with; fairseq's `min_loss_scale`.
    pub min_scale: f64,
    /// What is done below.
    pub then: AtFloor,
}

impl Default for ScaleFloor {
    fn default() -> Self {
        Self { min_scale: 1e-4, then: AtFloor::Halt }
    }
}

/// What is done when the scale falls below its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AtFloor {
    /// Ends the run with an error.
    #[default]
    Halt,
    /// Holds the scale at the floor and says so.
    Warn,
    /// Goes on in `bf16-mixed`.
    FallBackToBf16,
}

named!(AtFloor, "policy", {
    Halt => "halt",
    Warn => "warn",
    FallBackToBf16 => "fall-back-to-bf16",
});

/// What comes after a step that was left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next examples.
    GoOn,
    /// The same examples.
    Again,
}

/// A state to come back to.
pub(super) struct Good {
    applied: u64,
    tensors: Vec<Tensor>,
    optimizers: Vec<State>,
    /// Whether it was come back to.
    used: bool,
}

impl Good {
    /// Bytes of its tensors.
    pub(super) fn bytes(&self) -> u64 {
        let states = self.optimizers.iter().flat_map(State::tensors).map(|(_, tensor)| tensor);
        self.tensors.iter().chain(states).map(tensor_bytes).sum()
    }
}

impl StepRunner<'_> {
    /// Keeps the state of now, where that is asked for and due.
    pub(super) fn keep_good(&mut self, model: &dyn LightningModule) -> Result<()> {
        let every = self.config.keep_good_every_n_steps;
        let wanted = self.config.on_non_finite == NonFinite::RestoreLastGood;
        if !wanted || (self.good.is_some() && !self.counts.applied.is_multiple_of(every)) {
            return Ok(());
        }
        let tensors = named_tensors(model).into_iter();
        let tensors = tensors.map(|(_, tensor, _)| copy_of(&tensor));
        let optimizers = self.optim.scheduled.iter().map(|scheduled| scheduled.state()?.copied());
        self.good = Some(Good {
            applied: self.counts.applied,
            tensors: tensors.collect::<Result<_>>()?,
            optimizers: optimizers.collect::<Result<_>>()?,
            used: false,
        });
        Ok(())
    }

    /// Decides what comes after a skipped step, and does it.
    pub(super) fn recover(
        &mut self,
        model: &mut dyn LightningModule,
        skipped: &Skipped,
        emit: &mut Emit<'_>,
    ) -> Result<Next> {
        let scaled = self.optim.scaler.is_enabled();
        let floor = self.config.scale_floor;
        if scaled && self.optim.scaler.scale_value() < floor.min_scale {
            return self.at_floor(model, skipped, emit);
        }
        let forward = match &skipped.provenance {
            Some(found) => found.cause.is_forward(),
            None => !self.window.is_loss_finite()?,
        };
        let stuck = self.counts.consecutive_skips > self.config.max_consecutive_skips;
        let policy = self.config.on_non_finite;
        if scaled && !forward && !stuck {
            if policy != NonFinite::LowerScale {
                return Ok(Next::GoOn);
            }
            let scale = self.optim.scaler.scale_value();
            self.recovered(Recovery::LoweredScale { scale }, emit)?;
            return Ok(Next::Again);
        }
        match policy {
            NonFinite::Ignore => Ok(Next::GoOn),
            NonFinite::Skip | NonFinite::LowerScale if !stuck => Ok(Next::GoOn),
            NonFinite::RestoreLastGood => self.restore_good(model, skipped, emit),
            NonFinite::FallBackToBf16 if self.policy.precision == Precision::F16Mixed => {
                self.fall_back(model, emit)?;
                Ok(Next::Again)
            }
            NonFinite::FallBackToBf16 if !stuck => Ok(Next::GoOn),
            _ => Err(self.report(skipped)),
        }
    }

    fn at_floor(
        &mut self,
        model: &mut dyn LightningModule,
        skipped: &Skipped,
        emit: &mut Emit<'_>,
    ) -> Result<Next> {
        let ScaleFloor { min_scale, then } = self.config.scale_floor;
        match then {
            AtFloor::Halt => {
                let why = skipped.cause();
                Err(Error::Scaler(format!(
                    "the scale fell to {:e}, below its floor of {min_scale:e}: {} of {} steps were \
                     skipped, the last since {why}; lower the learning rate or clip the gradients",
                    self.optim.scaler.scale_value(),
                    self.counts.skipped,
                    self.counts.attempts,
                )))
            }
            AtFloor::Warn => {
                self.optim.scaler.set_scale(min_scale)?;
                self.recovered(Recovery::HeldScale { scale: min_scale }, emit)?;
                Ok(Next::GoOn)
            }
            AtFloor::FallBackToBf16 => {
                self.fall_back(model, emit)?;
                Ok(Next::Again)
            }
        }
    }

    /// Goes on in `bf16-mixed`: the weights are f32 in both, so nothing but the casts changes.
    pub(super) fn fall_back(
        &mut self,
        model: &dyn LightningModule,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        self.set_precision(model, Precision::Bf16Mixed)?;
        self.counts.consecutive_skips = 0;
        self.recovered(Recovery::FellBack { precision: Precision::Bf16Mixed }, emit)
    }

    pub(super) fn set_precision(
        &mut self,
        model: &dyn LightningModule,
        precision: Precision,
    ) -> Result<()> {
        self.policy.precision = precision;
        nn::place(model, self.policy, &self.config.islands)?;
        self.context = self.new_context();
        self.optim.scaler = GradScaler::checking(self.policy.device)?;
        Ok(())
    }

    fn restore_good(
        &mut self,
        model: &dyn LightningModule,
        skipped: &Skipped,
        emit: &mut Emit<'_>,
    ) -> Result<Next> {
        let report = self.report(skipped);
        let Some(good) = self.good.as_mut().filter(|good| {
            // Coming back again only helps if steps were applied since.
            !good.used || self.counts.applied > good.applied
        }) else {
            return Err(report);
        };
        good.used = true;
        for ((_, mut tensor, _), kept) in named_tensors(model).into_iter().zip(&good.tensors) {
            tch::no_grad(|| tensor.f_copy_(kept))?;
        }
        for (scheduled, state) in self.optim.scheduled.iter_mut().zip(&good.optimizers) {
            scheduled.load_state(state)?;
        }
        let global_step = good.applied;
        self.counts.applied = global_step;
        self.counts.consecutive_skips = 0;
        self.recovered(Recovery::Restored { global_step }, emit)?;
        Ok(Next::GoOn)
    }

    pub(super) fn recovered(&self, recovery: Recovery, emit: &mut Emit<'_>) -> Result<()> {
        emit(Event::Recovered { attempt: self.counts.attempts, recovery })
    }

    fn report(&self, skipped: &Skipped) -> Error {
        let row = match self.counts.consecutive_skips {
            0 | 1 => String::new(),
            n => format!(", the {n}th in a row"),
        };
        Error::NonFinite(format!(
            "optimizer step {} under {} is not finite{row}: {}",
            skipped.attempt,
            self.policy.precision,
            skipped.cause(),
        ))
    }
}
