//! The trainer's options.

mod averaging;
mod graph;
mod loops;
mod recovery;

use std::{collections::BTreeMap, rc::Rc};

use tch::Device;

pub(super) use self::loops::{Validations, show_time};
pub use self::{
    averaging::Averaging,
    graph::Graph,
    loops::{Loops, ValCheckInterval, parse_time},
    recovery::{AtFloor, NonFinite, ScaleFloor},
};

use crate::{
    Error, Result,
    optim::{Moments, WeightUpdate},
    precision::{Clip, GradScalerConfig, GradientStorage, Policy, Precision, Region},
};

/// The trainer's options, by Lightning's names.
#[derive(Debug, Clone)]
pub struct TrainerConfig {
    /// Epochs to train.
    pub max_epochs: i64,
    /// Optimizer steps after which training ends, if before the last epoch.
    pub max_steps: Option<u64>,
    /// How long the run trains at least, how much of each set it uses and when it validates.
    pub loops: Loops,
    /// The precision.
    pub precision: Precision,
    /// Where to run.
    pub device: Device,
    /// Seed of the order of examples (weights and dropout follow libtorch's generator).
    pub seed: u64,
    /// Parameters that stay as they are, by patterns of their names (`*` is any text, dots included):
    /// `encoder.*`. They get no gradient and no optimizer state; batch statistics of their modules still
    /// move.
    pub freeze: Vec<String>,
    /// How weights are averaged, if they are.
    pub averaging: Option<Averaging>,
    /// Gradient clipping, if any.
    pub gradient_clip: Option<Clip>,
    /// Batches whose gradients are added up to one step.
    pub accumulate_grad_batches: i64,
    /// Optimizer steps between two logged ones, counted across epochs.
    pub log_every_n_steps: i64,
    /// How optimizers write to 16-bit parameters, which the `*-true` precisions have.
    pub weight_update: WeightUpdate,
    /// How optimizers keep their running averages.
    pub moments: Moments,
    /// How gradients are kept from the backward pass to the step.
    pub gradients: GradientStorage,
    /// Whether a skipped step moves the schedule and the step count, and leaves what its forward pass
    /// has changed (batch statistics, the model's own state, the random generator), as in Lightning.
    /// Otherwise it changes nothing.
    pub skipped_step_advances: bool,
    /// What is done about a step whose gradients are not finite.
    pub on_non_finite: NonFinite,
    /// Skipped steps in a row after which skipping is no longer an answer.
    pub max_consecutive_skips: u64,
    /// Applied steps between two states kept for [`NonFinite::RestoreLastGood`].
    pub keep_good_every_n_steps: u64,
    /// Whether a skipped step is run once more, observed, to name the module where it began.
    /// Other steps pay nothing.
    pub provenance: bool,
    /// How low the loss scale may fall.
    pub scale_floor: ScaleFloor,
    /// Whether a batch that does not fit into memory is run in halves, quarters and so on, whose
    /// gradients add up to the batch's. Batch statistics are then those of the parts.
    pub micro_batching: bool,
    /// The most bytes that a step's tensors may hold at once, if less than memory has: parameters,
    /// buffers, optimizer state, gradients, activations and the step's batches; on CUDA all that the
    /// process holds on the device. On the first step's examples the trainer measures which modules
    /// to checkpoint for that, the cheapest to compute again that suffice: layers of a
    /// [`Sequential`](crate::nn::Sequential), others that are [`shared`](crate::Module::shared), and
    /// [`Checkpoint`](crate::nn::Checkpoint)s, whatever these say themselves. No number changes on
    /// the CPU, and what a model's checkpoints hold of its own state is put back. What explains a skipped
    /// step keeps all activations for that one time; an optimizer's temporaries are not counted.
    pub memory_budget: Option<u64>,
    /// Whether whole steps run as CUDA graphs. The numbers are the same, to the last bit.
    pub graph: Graph,
    /// Optimizer steps between two that are profiled, counted across epochs.
    pub profile_every_n_steps: Option<i64>,
    /// The scaler's constants, used by `16-mixed`.
    pub scaler: GradScalerConfig,
    /// Precision regions by module path, over those the model declares.
    pub islands: Rc<BTreeMap<String, Region>>,
    /// Whether the training set is shuffled anew each epoch.
    pub shuffle: bool,
}

impl TrainerConfig {
    /// Lightning's defaults, except that a skipped step moves nothing and a step that is not
    /// finite is skipped under every precision.
    pub fn new(precision: Precision, device: Device) -> Self {
        Self {
            max_epochs: 1000,
            max_steps: None,
            loops: Loops::default(),
            precision,
            device,
            seed: 0,
            freeze: Vec::new(),
            averaging: None,
            gradient_clip: None,
            accumulate_grad_batches: 1,
            log_every_n_steps: 50,
            weight_update: WeightUpdate::default(),
            moments: Moments::default(),
            gradients: GradientStorage::default(),
            skipped_step_advances: false,
            on_non_finite: NonFinite::default(),
            max_consecutive_skips: 100,
            keep_good_every_n_steps: 100,
            provenance: true,
            scale_floor: ScaleFloor::default(),
            micro_batching: true,
            memory_budget: None,
            graph: Graph::default(),
            profile_every_n_steps: None,
            scaler: GradScalerConfig::default(),
            islands: Rc::default(),
            shuffle: true,
        }
    }

    /// The policy of the run.
    pub fn policy(&self) -> Policy {
        Policy::new(self.precision, self.device)
    }

    /// Checks what can be checked before a run; [`Trainer::fit`](crate::Trainer::fit) does so too.
    ///
    /// # Errors
    /// When an option is out of range, or not for this precision.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, value: i64| {
            if value > 0 {
                return Ok(());
            }
            Err(Error::config(format!("{name} is {value}, but must be at least 1")))
        };
        positive("max_epochs", self.max_epochs)?;
        positive("accumulate_grad_batches", self.accumulate_grad_batches)?;
        positive("log_every_n_steps", self.log_every_n_steps)?;
        positive("profile_every_n_steps", self.profile_every_n_steps.unwrap_or(1))?;
        self.loops.check()?;
        self.averaging.map_or(Ok(()), Averaging::check)?;
        self.gradient_clip.map(Clip::validated).transpose()?;
        if self.keep_good_every_n_steps == 0 {
            return Err(Error::config("keep_good_every_n_steps is 0, but must be at least 1"));
        }
        if self.memory_budget == Some(0) {
            return Err(Error::config("memory_budget is 0, but must be at least 1 byte"));
        }
        let (floor, lowest) = (self.scale_floor.min_scale, f64::from(f32::MIN_POSITIVE));
        if !(floor >= lowest && floor.is_finite()) {
            // Below, the scale's reciprocal is infinite and unscaling ruins finite gradients.
            return Err(Error::config(format!(
                "the scale floor is {floor:e}, but must be at least {lowest:e}"
            )));
        }
        if self.on_non_finite == NonFinite::FallBackToBf16 && self.precision != Precision::F16Mixed
        {
            return Err(Error::config(format!(
                "falling back to bf16 is for 16-mixed, not for {}: choose another on_non_finite",
                self.precision
            )));
        }
        Ok(())
    }

    /// Refuses what the trainer cannot do for a model that runs its updates itself.
    pub(super) fn check_manual(&self, model: &str) -> Result<()> {
        let runs_again =
            matches!(self.on_non_finite, NonFinite::LowerScale | NonFinite::FallBackToBf16)
                || self.scale_floor.then == AtFloor::FallBackToBf16;
        let cannot = [
            (self.gradient_clip.is_some(), "gradient_clip", "clip in manual_step"),
            (self.accumulate_grad_batches > 1, "accumulate_grad_batches", "add up in manual_step"),
            (self.memory_budget.is_some(), "memory_budget", "use Checkpoint layers"),
            (runs_again, "running a step again", "choose skip, stop or restore-last-good"),
        ];
        match cannot.into_iter().find(|(asked, ..)| *asked) {
            Some((_, what, instead)) => Err(Error::config(format!(
                "`{model}` optimizes manually, which rules out {what}: {instead}"
            ))),
            None => Ok(()),
        }
    }
}
