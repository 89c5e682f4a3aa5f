//! Mistakes that implementations of mixed precision make, each built on public interfaces.

mod interceptor;
mod loss;
mod optimizer;
mod schedule;

pub use interceptor::Faulty;

use std::any::Any;

use amp_core::{
    Result, TrainerConfig,
    data::{Batch, BatchType, DataModule, Limit, Order},
    nn::{FusedTimes, LayerLosesDigits},
    precision::{Clip, GrowsOnHostAlone, Precision},
};
use serde::{Deserialize, Serialize};

/// The part of training that a mistake breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// Loss scaling.
    Scaler,
    /// Learning rates over time.
    Schedule,
    /// Gradient clipping.
    Clipping,
    /// Several batches in a step.
    Accumulation,
    /// The optimizer's step and its state.
    Optimizer,
    /// Normalization and its statistics.
    Norms,
    /// Dropout and its random numbers.
    Dropout,
    /// The dtypes of computations.
    Precision,
    /// Validation and its reported values.
    Metrics,
    /// The memory of a step.
    Memory,
    /// Saving and resuming.
    Resume,
    /// Which examples are used, and in which order.
    DataOrder,
    /// CUDA graphs.
    Graph,
}

/// Declares the faults, each with its area and a description.
macro_rules! faults {
    ($($name:ident in $area:ident: $about:literal,)+) => {
        /// A mistake.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        #[expect(missing_docs, reason = "`about` says what each does")]
        pub enum Fault {
            $($name,)+
        }

        impl Fault {
            /// All faults.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// A description of the fault.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$name => $about,)+
                }
            }

            /// The part of training to which it belongs.
            pub fn area(self) -> Area {
                match self {
                    $(Self::$name => Area::$area,)+
                }
            }
        }
    };
}

faults! {
    SkipUnscale in Scaler: "gradients reach the optimizer with the loss scale",
    UnscaleTwice in Scaler: "gradients are divided by the loss scale twice",
    DropFoundInf in Scaler: "a step is taken although a gradient is infinite",
    AlwaysSkips in Scaler: "every step overflows",
    WrongScaleOnOneLayer in Scaler: "one layer's gradients are scaled twice as much",
    GrowsOneStepLate in Scaler: "the scale grows one step after its interval",
    GrowsFourfold in Scaler: "the scale grows by four instead of two",
    GrowsOnHostAlone in Scaler: "the scale grows on the host and stays on the device",
    BacksOffTooLittle in Scaler: "an overflow takes a quarter of the scale away instead of half",
    SchedulerMovesOnSkip in Schedule: "a skipped step moves the schedule",
    ScheduleTwice in Schedule: "the schedule advances twice in each step",
    ScheduleStuck in Schedule: "the schedule never advances",
    ScheduleLate in Schedule: "the schedule's first advance is lost",
    RatesIgnored in Schedule: "the optimizer steps at its first rate, whatever the schedule sets",
    LearningRateDoubled in Schedule: "the learning rate is twice the baseline's",
    ClipBeforeUnscale in Clipping: "scaled gradients are clipped",
    ClippingDropped in Clipping: "gradients are not clipped",
    ClipsByValue in Clipping: "elements are clipped instead of the norm",
    ClipsEachParameter in Clipping: "each parameter's gradient is clipped by its own norm",
    ClipsTooLittle in Clipping: "the norm is 10 % too small in steps that no callback observes",
    DeferredFactorWrong in Clipping: "the factor that a step clips by is 10 % too large",
    LossDividedTwice in Accumulation: "the loss is divided by the accumulated batches twice",
    LossSummed in Accumulation: "the losses of a step's batches are added, not averaged",
    PartialStepCountsLess in Accumulation: "an epoch's last step counts as if it had all batches",
    StepOneBatchShort in Accumulation: "a step takes one batch less than it should",
    StaleGradients in Accumulation: "the last step's gradients are added to each step's",
    ZeroGradMissing in Accumulation: "gradients are not cleared between steps",
    WeightDecayDropped in Optimizer: "the optimizer forgets its weight decay",
    RateOnePercentOff in Optimizer: "the optimizer's step is 1 % too long",
    SteppedTwice in Optimizer: "the optimizer steps twice on the same gradients",
    AveragesLost in Optimizer: "the optimizer's averages begin anew in each step",
    AveragesRounded in Optimizer: "the optimizer's averages are kept in bf16",
    ParameterNotHeld in Optimizer: "the optimizer does not hold one of the parameters",
    CopyHeld in Optimizer: "the optimizer holds a copy of one of the parameters, as one of before a conversion",
    WeightWrittenBack in Optimizer: "one weight is brought back after each step",
    GradientSwitchedOff in Optimizer: "one parameter requires no gradient from the fifth batch on",
    LaterStepsWrong in Optimizer: "after forty batches the loss is climbed, not descended",
    NothingLearns in Optimizer: "neither run moves its weights, and both agree",
    LayerNormInF16 in Norms: "a norm's variance is taken in f16, where it overflows",
    BuffersMoveOnSkip in Norms: "a skipped step moves batch statistics",
    StatisticsFrozen in Norms: "batch statistics do not move while training",
    StatisticsTwice in Norms: "batch statistics count each batch twice",
    CountsConverted in Norms: "the counts of batch norms are kept in 32 bits from the second batch on",
    EvaluationMode in Norms: "training runs in evaluation mode",
    DropoutOff in Dropout: "dropout is off while training",
    DropoutOnInput in Dropout: "dropout drops elements of the input, too",
    SameMaskEachStep in Dropout: "dropout drops the same elements in every step",
    DropoutScaleWrong in Dropout: "a layer drops a third and scales for a fifth",
    DropoutInValidation in Dropout: "validation drops elements",
    Tf32Baseline in Precision: "the 32-true baseline may multiply in TF32, which it does on CUDA",
    AutocastOff in Precision: "autocast does nothing",
    TruncatingRounding in Precision: "weights are rounded towards zero",
    Bf16Weights in Precision: "master weights are kept in bf16",
    LayerTruncates in Precision: "a layer cuts off what f16 has no room for, instead of rounding",
    LayerLosesDigits in Precision: "one layer's 16-bit results lose their last two binary digits",
    LayerWide in Precision: "a layer multiplies in f32 and casts the result to f16",
    RoundedTwice in Precision: "a layer's values are rounded to bf16 on their way to f16",
    LossInF16 in Precision: "the loss is rounded to f16 with 6 bits",
    LossIsNan in Precision: "the loss is not a number",
    WeightNotFinite in Precision: "a weight becomes NaN",
    GradientOfOneLayerLost in Precision: "one layer gets no gradient",
    NoisyGradients in Precision: "gradients carry noise of 0.3 of their size",
    SmallGradientsLost in Precision: "gradients below a hundredth of the largest are set to zero",
    ValidatesOnTraining in Metrics: "the precision is validated on the training set",
    BothValidateOnTraining in Metrics: "both are validated on the training set",
    ValidatesFirstBatch in Metrics: "only the first batch is validated",
    ValidatesInTrainingMode in Metrics: "layers validate in training mode",
    ValidationMovesWeights in Metrics: "validation moves a weight",
    LeaksEachStep in Memory: "each step keeps a tensor",
    MeasuresWithin in Memory: "a meter of memory is started while another measures, which misses what follows",
    TakesTooMuch in Memory: "a step needs several times the memory of 32-true",
    LoseStateOnLoad in Resume: "a resumed run has its weights, but a new scaler and optimizer",
    AveragesLostOnLoad in Resume: "a resumed run has a new optimizer",
    ScheduleLostOnLoad in Resume: "a resumed run begins its schedule anew",
    SeedNotPaired in DataOrder: "the precision runs with another seed than the baseline",
    NotShuffled in DataOrder: "the training set is not shuffled",
    LastBatchDropped in DataOrder: "an epoch's last batch is left out",
    NothingToLearn in DataOrder: "both runs train on the targets of other examples",
    TargetsShifted in DataOrder: "targets belong to the next example",
    FusedLayersWrong in Graph: "layers that run in one return 5 % too much",
    UnwatchedStepWrong in Graph: "what a CUDA graph would hold computes a loss 5 % too large",
    CapturedRatesStale in Graph: "a captured step keeps the rates of its capture",
}

impl Fault {
    /// The property that a model needs for the fault to change its numbers; `None` if every model
    /// has it.
    ///
    /// A fault with a need is planted only in a model that declares through
    /// [`Model::reveals`](crate::Model::reveals) that it has this property.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::SkipUnscale | Self::UnscaleTwice => {
                Some("an optimizer that feels the size of gradients, as AdamW with a large epsilon")
            }
            Self::ClipBeforeUnscale => Some("gradient clipping that takes effect"),
            Self::SchedulerMovesOnSkip
            | Self::ScheduleTwice
            | Self::ScheduleStuck
            | Self::ScheduleLate
            | Self::RatesIgnored
            | Self::ScheduleLostOnLoad
            | Self::CapturedRatesStale => Some("a learning rate that changes every step"),
            Self::LossDividedTwice
            | Self::LossSummed
            | Self::PartialStepCountsLess
            | Self::StepOneBatchShort => {
                Some("accumulation over several batches, with fewer in an epoch's last step")
            }
            Self::LayerTruncates
            | Self::LayerWide
            | Self::RoundedTwice
            | Self::DropoutScaleWrong => {
                Some("a layer with that fault, which the model itself has")
            }
            Self::LayerLosesDigits => Some("the name of the layer that loses digits"),
            Self::LayerNormInF16 => Some("a layer norm whose input has a large variance"),
            Self::BuffersMoveOnSkip
            | Self::CountsConverted
            | Self::ValidatesInTrainingMode
            | Self::StatisticsFrozen
            | Self::StatisticsTwice
            | Self::EvaluationMode => Some("batch statistics"),
            Self::FusedLayersWrong => {
                Some("layers that a GPU runs in one, as a batch norm with ReLU")
            }
            Self::DropoutOff | Self::SameMaskEachStep => Some("dropout"),
            _ => None,
        }
    }

    /// Whether the fault shows only on a CUDA device.
    pub fn needs_cuda(self) -> bool {
        self == Self::CapturedRatesStale
    }

    /// Whether the fault changes the baseline.
    pub(crate) fn touches_baseline(self) -> bool {
        self.strikes(Precision::F32True) || self == Self::Tf32Baseline
    }

    fn strikes(self, precision: Precision) -> bool {
        let both = matches!(
            self,
            Self::BothValidateOnTraining
                | Self::NothingLearns
                | Self::NothingToLearn
                | Self::WeightDecayDropped
        );
        both || precision != Precision::F32True
    }

    pub(crate) fn seed(fault: Option<Self>, precision: Precision, seed: u64) -> u64 {
        match fault {
            Some(Self::SeedNotPaired) if precision != Precision::F32True => seed + 1_000_003,
            _ => seed,
        }
    }

    pub(crate) fn data(
        fault: Option<Self>,
        precision: Precision,
        data: &mut DataModule,
    ) -> Result<()> {
        let Some(fault) = fault.filter(|fault| fault.strikes(precision)) else { return Ok(()) };
        match fault {
            Self::ValidatesOnTraining | Self::BothValidateOnTraining => {
                data.val = data.train.clone().into();
            }
            Self::NotShuffled => data.order = Order::InOrder,
            Self::NothingToLearn => {
                let all = Batch::from_any(&data.train.head(data.train.len())?)?;
                let target = all.target.f_roll([101], [0])?;
                data.train = Batch::new(all.input, target)?.into();
            }
            _ => {}
        }
        Ok(())
    }

    /// Changes the options of a run, after everything else has set them.
    pub(crate) fn config(fault: Option<Self>, config: &mut TrainerConfig) {
        let Some(fault) = fault.filter(|fault| fault.strikes(config.precision)) else { return };
        let scales = config.precision.scales_loss();
        let (scaler, optimization) = (&mut config.numerics.scaler, &mut config.optimization);
        match fault {
            Self::SchedulerMovesOnSkip | Self::BuffersMoveOnSkip => {
                config.recovery.skipped_step_advances = true
            }
            Self::ClipBeforeUnscale if scales => optimization.gradient_clip = None,
            Self::ClippingDropped => optimization.gradient_clip = None,
            Self::ClipsByValue => {
                if let Some(Clip::Norm(limit)) = optimization.gradient_clip {
                    optimization.gradient_clip = Some(Clip::Value(limit));
                }
            }
            Self::GrowsOneStepLate => scaler.growth_interval += 1,
            Self::GrowsFourfold => scaler.growth_factor = 4.0,
            Self::BacksOffTooLittle => scaler.backoff_factor = 0.75,
            Self::StepOneBatchShort => {
                let batches = &mut optimization.accumulate_grad_batches;
                *batches = (*batches - 1).max(1);
            }
            Self::LastBatchDropped => {
                // A fraction rounds down.
                let limit = &mut config.loops.limit_train_batches;
                *limit = match *limit {
                    Limit::Fraction(_) => Limit::Fraction(0.999),
                    batches @ Limit::Batches(_) => batches,
                };
            }
            _ => {}
        }
    }

    /// Plants a fault that no hook can plant, in jobs of this precision, as long as the returned value
    /// lives. `layer` is the layer that the model names for it.
    pub(crate) fn planted(
        fault: Option<Self>,
        precision: Precision,
        layer: Option<&str>,
    ) -> Option<Box<dyn Any>> {
        match fault.filter(|fault| fault.strikes(precision))? {
            Self::GrowsOnHostAlone => Some(Box::new(GrowsOnHostAlone::new())),
            Self::FusedLayersWrong => Some(Box::new(FusedTimes::new(1.05))),
            Self::LayerLosesDigits => Some(Box::new(LayerLosesDigits::new(layer?))),
            _ => None,
        }
    }

    pub(crate) fn loses_state(fault: Option<Self>) -> bool {
        fault == Some(Self::LoseStateOnLoad)
    }
}
