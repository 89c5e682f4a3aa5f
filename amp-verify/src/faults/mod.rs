//! Typical mistakes in mixed-precision training (faults). The self-test puts them into training and
//! checks that the gate reports each of them. A fault is put into training through public
//! interfaces, in most cases by wrapping the model, its optimizer or its schedule.

mod interceptor;
mod loss;
mod optimizer;
mod schedule;

pub use interceptor::Faulty;

use std::any::Any;

use amp_core::{
    Result, TrainerConfig,
    data::{Batch, BatchType, DataModule, Limit, Order},
    nn::{FaultyLayer, FusedTimes, LayerFault},
    precision::{Clip, GrowsOnHostAlone, Precision},
};
use serde::{Deserialize, Serialize};

/// The part of training that a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// Loss scaling.
    Scaler,
    /// The learning rates and how they change over time.
    Schedule,
    /// Gradient clipping.
    Clipping,
    /// Accumulation of several batches in a step.
    Accumulation,
    /// The optimizer's step and the optimizer's state.
    Optimizer,
    /// Normalization layers and their statistics.
    Norms,
    /// Dropout and its random masks.
    Dropout,
    /// The dtypes in which values are computed.
    Precision,
    /// Validation and the values that it logs.
    Metrics,
    /// How much memory a step uses.
    Memory,
    /// Saving and resuming.
    Resume,
    /// The choice and the order of examples.
    DataOrder,
    /// CUDA graphs.
    Graph,
}

/// Defines the enum [`Fault`]. Each line contains the name of a fault, the part of training that
/// the fault affects, and a description.
macro_rules! faults {
    ($($name:ident in $area:ident: $about:literal,)+) => {
        /// A mistake that the self-test puts into training on purpose, to test that the gate
        /// reports it.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        #[expect(missing_docs, reason = "`about` describes each fault")]
        pub enum Fault {
            $($name,)+
        }

        impl Fault {
            /// All faults.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns the name of the fault on the command line, in snake case.
            pub fn name(self) -> String {
                let name = serde_json::to_value(self).unwrap_or_default();
                name.as_str().unwrap_or_default().to_owned()
            }

            /// Returns a description of the fault in one line.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$name => $about,)+
                }
            }

            /// Returns the part of training that the fault affects.
            pub fn area(self) -> Area {
                match self {
                    $(Self::$name => Area::$area,)+
                }
            }
        }
    };
}

faults! {
    SkipUnscale in Scaler: "gradients are not divided by the loss scale before the optimizer's step",
    UnscaleTwice in Scaler: "gradients are divided by the loss scale twice",
    DropFoundInf in Scaler: "a step is applied although a gradient is infinite",
    AlwaysSkips in Scaler: "every step overflows",
    WrongScaleOnOneLayer in Scaler: "the gradients of one layer are multiplied by two",
    GrowsOneStepLate in Scaler: "the scale grows one step after its interval",
    GrowsFourfold in Scaler: "the scale grows by four instead of two",
    GrowsOnHostAlone in Scaler: "the scale grows on the host but not on the device",
    BacksOffTooLittle in Scaler: "an overflow reduces the scale by a quarter, not by half",
    SchedulerMovesOnSkip in Schedule: "a skipped step advances the schedule",
    ScheduleTwice in Schedule: "the schedule advances twice in each step",
    ScheduleStuck in Schedule: "the schedule never advances",
    ScheduleLate in Schedule: "the schedule misses its first advance and stays one step behind",
    RatesIgnored in Schedule: "the optimizer always uses its first learning rate",
    LearningRateDoubled in Schedule: "the learning rate is twice the baseline's",
    ClipBeforeUnscale in Clipping: "gradients are clipped while they are still scaled",
    ClippingDropped in Clipping: "gradients are not clipped",
    ClipsByValue in Clipping: "gradients are clipped by value, not by norm",
    ClipsEachParameter in Clipping: "each parameter's gradient is clipped by its own norm",
    ClipsTooLittle in Clipping: "the gradient norm for clipping is 10 % too small in runs whose \
        steps the gate does not observe",
    DeferredFactorWrong in Clipping: "the clipping factor is 10 % too large",
    LossDividedTwice in Accumulation: "the loss is divided by the number of accumulated batches twice",
    LossSummed in Accumulation: "the losses of accumulated batches are added, not averaged",
    PartialStepCountsLess in Accumulation: "the loss of an epoch's last, shorter step is divided \
        by the full number of batches",
    StepOneBatchShort in Accumulation: "a step uses one batch fewer than requested",
    StaleGradients in Accumulation: "each step adds the gradients of the step before",
    ZeroGradMissing in Accumulation: "gradients are not cleared between steps",
    WeightDecayDropped in Optimizer: "the optimizer ignores its weight decay",
    RateOnePercentOff in Optimizer: "the optimizer's step is 1 % too large",
    SteppedTwice in Optimizer: "the optimizer steps twice on the same gradients",
    AveragesLost in Optimizer: "the optimizer's running averages restart in each step",
    AveragesRounded in Optimizer: "the optimizer's running averages are kept in bf16",
    ParameterNotHeld in Optimizer: "the optimizer lacks one of the parameters",
    CopyHeld in Optimizer: "the optimizer updates a copy of one parameter, not the parameter itself",
    WeightWrittenBack in Optimizer: "one weight is reset after each step",
    GradientSwitchedOff in Optimizer: "one parameter is frozen from the fifth batch on",
    LaterStepsWrong in Optimizer: "after forty batches the loss is increased, not decreased",
    NothingLearns in Optimizer: "the weights change neither under the precision nor in the \
        baseline, so the two runs agree",
    LayerNormInF16 in Norms: "a norm computes its variance in f16, which overflows",
    BuffersMoveOnSkip in Norms: "a skipped step changes running statistics",
    StatisticsFrozen in Norms: "running statistics do not change in training",
    StatisticsTwice in Norms: "running statistics include each batch twice",
    CountsConverted in Norms: "the counters of batch norms have 32 bits from the second batch on",
    EvaluationMode in Norms: "training runs in evaluation mode",
    DropoutOff in Dropout: "dropout is off in training",
    DropoutOnInput in Dropout: "dropout is also applied to the model's input",
    SameMaskEachStep in Dropout: "dropout zeroes the same elements in every step",
    DropoutScaleWrong in Dropout: "a layer zeroes a third of its elements but scales the others as if it zeroed a fifth",
    DropoutInValidation in Dropout: "dropout is active in validation",
    Tf32Baseline in Precision: "TF32 is switched on for the 32-true baseline, which then uses it on CUDA",
    AutocastOff in Precision: "autocast does nothing",
    TruncatingRounding in Precision: "weights are rounded towards zero",
    Bf16Weights in Precision: "master weights are kept in bf16",
    LayerTruncates in Precision: "a layer truncates to f16, instead of rounding",
    LayerLosesDigits in Precision: "the 16-bit results of one layer lose their last two bits",
    LayerFlushesSmall in Precision: "in one layer, 16-bit results below the smallest normal number become zero",
    LayerWide in Precision: "a layer multiplies in f32 and casts the result to f16",
    RoundedTwice in Precision: "a layer's values are rounded to bf16 and then to f16",
    LossInF16 in Precision: "the loss is truncated to 6 bits after the binary point",
    LossIsNan in Precision: "the loss is NaN",
    LossBroadcasts in Precision: "the loss subtracts targets [N] from outputs [N, 1], which are broadcast to [N, N]",
    WeightNotFinite in Precision: "a weight becomes NaN",
    GradientOfOneLayerLost in Precision: "one layer gets no gradient",
    NoisyGradients in Precision: "noise is added to gradients, 0.3 times their standard deviation",
    SmallGradientsLost in Precision: "gradients below a hundredth of the largest are set to zero",
    ValidatesOnTraining in Metrics: "the precision is validated on the training set",
    BothValidateOnTraining in Metrics: "the precision and the baseline are validated on the training set",
    ValidatesFirstBatch in Metrics: "validation uses only its first batch",
    ValidatesInTrainingMode in Metrics: "validation runs in training mode",
    ValidationMovesWeights in Metrics: "validation changes a weight",
    LeaksEachStep in Memory: "each step leaks a tensor",
    MeasuresWithin in Memory: "a second memory meter starts during a measurement and disturbs the first one",
    TakesTooMuch in Memory: "a step needs several times the memory of 32-true",
    LoseStateOnLoad in Resume: "a resumed run has the saved weights, but a new scaler and optimizer",
    AveragesLostOnLoad in Resume: "a resumed run has a new optimizer",
    ScheduleLostOnLoad in Resume: "a resumed run starts its schedule at the beginning",
    SeedNotPaired in DataOrder: "the precision runs with another seed than the baseline",
    NotShuffled in DataOrder: "the training set is not shuffled",
    LastBatchDropped in DataOrder: "an epoch's last batch is left out",
    NothingToLearn in DataOrder: "the precision and the baseline train on the targets of other examples",
    TargetsShifted in DataOrder: "each example has the target of the next one",
    FusedLayersWrong in Graph: "fused layers return values that are 5 % too large",
    UnwatchedStepWrong in Graph: "in runs whose steps the gate does not observe, the loss is \
        5 % too large from the fourth batch on",
    CapturedRatesStale in Graph: "a step that runs as a CUDA graph keeps the learning rates of its capture",
}

impl Fault {
    /// Returns which property a model must have so that this fault changes the model's results.
    /// Returns `None` if the fault changes the results of every model.
    ///
    /// If the fault needs such a property, it is put only into models that were registered with
    /// [`Model::reveals`](crate::Model::reveals) for this fault.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::SkipUnscale | Self::UnscaleTwice => Some(
                "an optimizer whose step changes if all gradients are multiplied by a constant, for \
                 example AdamW with a large epsilon",
            ),
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
            fault if fault.is_in_code() => Some("a layer whose own code has this fault"),
            Self::LayerLosesDigits | Self::LayerFlushesSmall => {
                Some("the name of the layer to which the fault is applied")
            }
            Self::LayerNormInF16 => Some("a layer norm whose input has a large variance"),
            Self::BuffersMoveOnSkip
            | Self::CountsConverted
            | Self::ValidatesInTrainingMode
            | Self::StatisticsFrozen
            | Self::StatisticsTwice
            | Self::EvaluationMode => Some("batch statistics"),
            Self::FusedLayersWrong => {
                Some("layers that a GPU fuses, for example a batch norm with ReLU")
            }
            Self::DropoutOff | Self::SameMaskEachStep => Some("dropout"),
            _ => None,
        }
    }

    /// Returns whether the fault is in the code of a layer of the model. Such a model has the fault in
    /// every run, so that there is no run without the fault.
    pub fn is_in_code(self) -> bool {
        matches!(
            self,
            Self::LayerTruncates | Self::LayerWide | Self::RoundedTwice | Self::DropoutScaleWrong
        )
    }

    /// Returns whether the fault has an effect only on a CUDA device.
    pub fn needs_cuda(self) -> bool {
        self == Self::CapturedRatesStale
    }

    /// Returns whether the fault also changes the 32-true baseline.
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

    /// Changes the trainer's options, if the fault consists of a wrong option. Call this function
    /// after all other code that sets options.
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
                // Trains on 99.9 % of the batches. With fewer than 1000 batches, this is rounded
                // down to one batch fewer than all.
                let limit = &mut config.loops.limit_train_batches;
                *limit = match *limit {
                    Limit::Fraction(_) => Limit::Fraction(0.999),
                    batches @ Limit::Batches(_) => batches,
                };
            }
            _ => {}
        }
    }

    /// Activates a fault that must be put into the trainer or into a layer and not into a wrapper
    /// around the model. Does nothing if the fault does not affect this precision. The fault stays
    /// active until the returned value is dropped. `layer` is the path of the layer for a fault in
    /// one layer.
    pub(crate) fn planted(
        fault: Option<Self>,
        precision: Precision,
        layer: Option<&str>,
    ) -> Option<Box<dyn Any>> {
        match fault.filter(|fault| fault.strikes(precision))? {
            Self::GrowsOnHostAlone => Some(Box::new(GrowsOnHostAlone::new())),
            Self::FusedLayersWrong => Some(Box::new(FusedTimes::new(1.05))),
            Self::LayerLosesDigits => {
                Some(Box::new(FaultyLayer::new(layer?, LayerFault::LosesDigits)))
            }
            Self::LayerFlushesSmall => {
                Some(Box::new(FaultyLayer::new(layer?, LayerFault::FlushesSmall)))
            }
            _ => None,
        }
    }

    pub(crate) fn loses_state(fault: Option<Self>) -> bool {
        fault == Some(Self::LoseStateOnLoad)
    }
}
