//! Training runs that violate no invariant, although parameters do not change, steps are skipped or
//! optimizers are unusual.

use amp_core::{
    Result, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    nn::{Dropout, Linear, Sequential},
    optim::{
        Adam, AdamW, BuildOptimizer, Interval, Lion, OptimizerConfig, ParamGroups, RmsProp, Sgd,
        StepLr, WarmupCosine, WeightUpdate,
    },
    precision::{Clip, GradScalerConfig, Precision},
    prelude::*,
    trainer::{AtFloor, Averaging, Check, NonFinite},
};
use rstest::rstest;

use crate::support::{
    device,
    model::{Model, demo, digits, same},
    seeded,
};

fn config(precision: Precision, level: Check) -> TrainerConfig {
    TrainerConfig::new(precision, device()).with(|config| {
        config.max_epochs = 2;
        config.numerics.scaler = GradScalerConfig { init_scale: 1024.0, ..Default::default() };
        (config.checks.level, config.checks.shared_examples) = (level, true);
    })
}

/// Trains for fourteen steps over two epochs, with a validation after each epoch.
fn trains(config: TrainerConfig, optimizer: impl Fn() -> OptimizerConfig + 'static) -> Result<()> {
    let _section = seeded(0);
    let mut model = Model::regression(demo(0.2)?, move |_| optimizer());
    model.loss = amp_core::loss::cross_entropy;
    Trainer::new(config).fit(&mut model, &same(digits(56)?, 8)?)?;
    Ok(())
}

fn optimizer(name: &str) -> Box<dyn BuildOptimizer> {
    match name {
        "adamw" => Box::new(AdamW::default()),
        "adam foreach" => Box::new(Adam { fused: false, ..Adam::default() }),
        "sgd" => Box::new(Sgd { lr: 0.1, momentum: 0.9, ..Sgd::default() }),
        "rmsprop" => Box::new(RmsProp { centered: true, ..RmsProp::default() }),
        _ => Box::new(Lion::default()),
    }
}

struct Boxed(&'static str);

impl BuildOptimizer for Boxed {
    fn build_with(
        &self,
        parameters: Vec<amp_core::nn::Parameter>,
        storage: amp_core::optim::Storage,
    ) -> Result<Box<dyn amp_core::optim::Optimizer>> {
        optimizer(self.0).build_with(parameters, storage)
    }
}

/// No optimizer violates an invariant in any precision. The model has biases before a batch norm,
/// whose gradients consist only of rounding errors.
#[rstest]
fn no_optimizer_breaks_a_rule_in_any_precision(
    #[values("adamw", "adam foreach", "sgd", "rmsprop", "lion")] name: &'static str,
    #[values(
        Precision::F64True,
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::Bf16True,
        Precision::F16True
    )]
    precision: Precision,
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let schedule = || StepLr { step_size: 2, gamma: 0.9 };
    trains(config(precision, level), move || {
        OptimizerConfig::new(Boxed(name)).with_scheduler(schedule(), Interval::Step)
    })
}

/// Training runs with learning rates near 0 violate no invariant. The cases are:
///
/// - a rate of 0
/// - a rate whose updates are too small to change a weight in any dtype
/// - a rate that is 0 for longer than the invariant waits for a weight to change
/// - a rate of 0 in one parameter group
#[rstest]
#[case::no_rate(|| OptimizerConfig::new(AdamW { lr: 0.0, ..AdamW::default() }))]
#[case::no_rate_but_decay(|| {
    OptimizerConfig::new(Sgd { lr: 0.0, weight_decay: 0.1, ..Sgd::default() })
})]
#[case::too_fine(|| OptimizerConfig::new(AdamW { lr: 1e-12, ..AdamW::default() }))]
#[case::dies_out(|| {
    OptimizerConfig::new(AdamW::default())
        .with_scheduler(StepLr { step_size: 1, gamma: 0.0 }, Interval::Step)
})]
#[case::warms_up(|| {
    OptimizerConfig::new(AdamW::default())
        .with_scheduler(WarmupCosine { warmup_steps: 1_000_000_000, total_steps: 2_000_000_000 }, Interval::Step)
})]
#[case::a_group_of_rate_0(|| {
    let base = AdamW::default();
    OptimizerConfig::new(ParamGroups::new(base).group(["model.0.*"], AdamW { lr: 0.0, ..base }))
})]
#[case::by_epochs(|| {
    OptimizerConfig::new(AdamW::default())
        .with_scheduler(StepLr { step_size: 1, gamma: 0.5 }, Interval::Epoch)
})]
fn weights_with_a_reason_not_to_move_break_no_rule(
    #[case] optimizer: fn() -> OptimizerConfig,
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16True)] precision: Precision,
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    trains(config(precision, level), optimizer)
}

/// Correct training runs with clipping, accumulation and other options violate no invariant.
#[rstest]
#[case::clipped(|config: &mut TrainerConfig| {
    config.optimization.gradient_clip = Some(Clip::Norm(1e-3));
})]
#[case::clipped_by_value(|config: &mut TrainerConfig| {
    config.optimization.gradient_clip = Some(Clip::Value(1e-6));
})]
#[case::accumulated(|config: &mut TrainerConfig| {
    config.optimization.accumulate_grad_batches = 3;
})]
#[case::averaged(|config: &mut TrainerConfig| {
    config.optimization.averaging = Some(Averaging::Ema { decay: 0.9 });
})]
#[case::frozen(|config: &mut TrainerConfig| {
    config.optimization.freeze = vec!["model.0.*=epoch:1".parse().expect("an entry")];
})]
#[case::sanity(|config: &mut TrainerConfig| config.loops.num_sanity_val_steps = 2)]
#[case::overflows(|config: &mut TrainerConfig| {
    config.numerics.scaler.init_scale = 2f64.powi(30);
    config.numerics.scaler.growth_interval = 3;
})]
#[case::runs_again(|config: &mut TrainerConfig| {
    config.numerics.scaler.init_scale = 2f64.powi(30);
    config.numerics.scaler.growth_interval = 2;
    config.recovery.on_non_finite = NonFinite::LowerScale;
})]
#[case::counts_skips(|config: &mut TrainerConfig| {
    config.numerics.scaler.init_scale = 2f64.powi(30);
    config.recovery.skipped_step_advances = true;
})]
#[case::holds_its_scale(|config: &mut TrainerConfig| {
    config.numerics.scaler.init_scale = 2f64.powi(30);
    config.recovery.scale_floor.min_scale = 2f64.powi(29) * 1.5;
    config.recovery.scale_floor.then = AtFloor::Warn;
})]
#[case::falls_back(|config: &mut TrainerConfig| {
    config.numerics.scaler.init_scale = 2f64.powi(30);
    config.recovery.scale_floor.min_scale = 2f64.powi(29);
    config.recovery.scale_floor.then = AtFloor::FallBackToBf16;
})]
fn other_options_break_no_rule(
    #[case] set: fn(&mut TrainerConfig),
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let schedule = || StepLr { step_size: 2, gamma: 0.9 };
    trains(config(Precision::F16Mixed, level).with(set), move || {
        OptimizerConfig::new(AdamW::default()).with_scheduler(schedule(), Interval::Step)
    })
}

/// None of the ways to store 16-bit weights violates an invariant.
#[rstest]
fn no_storage_of_16_bit_weights_breaks_a_rule(
    #[values(
        WeightUpdate::RoundToNearest,
        WeightUpdate::MasterWeights,
        WeightUpdate::StochasticRounding
    )]
    update: WeightUpdate,
    #[values(1e-3, 1e-6)] lr: f64,
) -> Result<()> {
    let mut config = config(Precision::Bf16True, Check::Full);
    config.numerics.weight_update = update;
    trains(config, move || OptimizerConfig::new(AdamW { lr, ..AdamW::default() }))
}

/// A model in which some gradients are missing, although nothing is wrong. Most rows of the
/// embedding get no gradient in any step, and the layers of a branch that never runs get none.
#[derive(LightningModule)]
#[forward(|x| {
    let words = drop(&words(x)?)?;
    head(&if x.numel() == 0 { unused(&words)? } else { words })
})]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-2)]
struct Words {
    #[layer(embedding(5000, 8))]
    words: Embedding,
    #[layer(dropout(0.1))]
    drop: Dropout,
    #[layer(linear(8, 2))]
    head: Linear,
    #[layer(sequential(linear(8, 8), relu))]
    unused: Sequential,
}

#[rstest]
fn rows_and_branches_without_gradients_break_no_rule(
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let _section = seeded(0);
    let mut model = Words::builder().build()?;
    let words = |from: i64| -> Result<Batch> {
        let ids = Tensor::arange_start(from, from + 64, (Kind::Int64, Device::Cpu));
        Batch::new(ids.remainder(4), ids.remainder(2))
    };
    let data = DataModule::new("words", words(0)?, words(64)?, 4);
    let config = config(Precision::F32True, level);
    Trainer::new(config).fit(&mut model, &data)?;
    Ok(())
}
