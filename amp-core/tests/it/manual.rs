//! Tests of models that run their backward passes and optimizer steps themselves.

use amp_core::{
    Error, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    data::{Batch, BatchType, DataModule},
    log::{Log, LogOptions},
    loss,
    nn::{self, Context, Linear},
    precision::{Clip, GradScalerConfig, Policy, Precision},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::{ManualStep, NonFinite, first_loss},
};
use rstest::rstest;

use crate::support::{bits::values, device, message, seeded};

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 0.01)]
#[scheduler(step_lr, step_size = 2, gamma = 0.5, interval = step)]
pub(crate) struct Automatic {
    #[layer(linear(4, 8))]
    body: Linear,
    #[layer(linear(8, 2))]
    head: Linear,
}

/// The same model as `Automatic`. Its manual step calls the functions that the trainer calls in a
/// step.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[manual_step(as_the_trainer)]
#[optimizer(adamw, lr = 0.01)]
#[scheduler(step_lr, step_size = 2, gamma = 0.5, interval = step)]
struct ByHand {
    #[layer(linear(4, 8))]
    body: Linear,
    #[layer(linear(8, 2))]
    head: Linear,
}

fn as_the_trainer(net: &mut ByHand, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    let value = step.forward(|step| {
        loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)
    })?;
    step.log("train_loss", &value, batch.len(), LogOptions::ON_STEP)?;
    let mut optimizer = step.optimizer(0)?;
    let gradients = optimizer.backward(&value)?;
    let gradients = optimizer.unscale(gradients)?;
    let _ = gradients.clip_grad_norm(0.5)?;
    optimizer.step(gradients).map(drop)
}

/// Returns `count` training examples in batches of 4. The validation set has the same examples.
pub(crate) fn rows(count: i64) -> Result<DataModule> {
    let _section = seeded(5);
    let options = (Kind::Float, Device::Cpu);
    let (input, target) = (Tensor::randn([count, 4], options), Tensor::randn([count, 2], options));
    let val = Batch::new(input.copy(), target.copy())?;
    Ok(DataModule::new("rows", Batch::new(input, target)?, val, 4))
}

fn config(precision: Precision) -> TrainerConfig {
    TrainerConfig { max_epochs: 3, ..TrainerConfig::new(precision, device()) }.with(|config| {
        // With this loss scale, the first step in 16-mixed overflows. The loss scale grows soon
        // after.
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2f64.powi(20),
            growth_interval: 2,
            ..Default::default()
        };
    })
}

fn train(model: &mut dyn LightningModule, config: TrainerConfig) -> Result<RunRecord> {
    Trainer::new(config).fit(model, &rows(16)?)
}

/// A manual step that calls the same functions as the trainer gives the same weights, skipped
/// steps, loss scale and logged values, bit for bit.
#[rstest]
fn the_trainers_sequence_by_hand_gives_the_trainers_bits(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    let mut automatic = {
        let _section = seeded(0);
        Automatic::builder().build()?
    };
    let mut manual = {
        let _section = seeded(0);
        ByHand::builder().build()?
    };
    let clipped =
        config(precision).with(|config| config.optimization.gradient_clip = Some(Clip::Norm(0.5)));
    let expected = train(&mut automatic, clipped)?;
    let seen = train(&mut manual, config(precision))?;
    assert_eq!(seen.end.skipped > 0, precision == Precision::F16Mixed);
    assert_eq!(seen.scales, expected.scales);
    assert_eq!(
        (seen.end.global_step, seen.end.skipped),
        (expected.end.global_step, expected.end.skipped)
    );
    for (one, other) in seen.epochs.iter().zip(&expected.epochs) {
        assert_eq!((&one.train, &one.val, one.lr), (&other.train, &other.val, other.lr));
    }
    for (one, other) in nn::parameters(&manual).iter().zip(nn::parameters(&automatic)) {
        assert!(one.tensor.equal(&other.tensor), "`{}`", one.name);
    }
    assert_eq!(seen.observed, expected.observed);
    Ok(())
}

/// Returns a layer with the weight 1 and no bias.
fn one() -> Result<Linear> {
    let layer = Linear::new(nn::LinearConfig { bias: false, ..nn::LinearConfig::new(1, 1) })?;
    let _ = amp_core::tch::no_grad(|| layer.weight().shallow_clone().fill_(1.0));
    Ok(layer)
}

/// A model with two weights, `critic` and `generator`. The critic is updated three times for each
/// update of the generator. The critic's gradient is the mean of the batch's input, and the
/// generator's gradient is the mean of the batch's target.
#[derive(LightningModule)]
#[manual_step(three_to_one)]
#[optimizer(sgd, lr = 0.25, params = ["critic.*"])]
#[scheduler(step_lr, step_size = 1, gamma = 0.5, interval = step)]
#[optimizer(sgd, lr = 0.25, params = ["generator.*"])]
#[scheduler(step_lr, step_size = 1, gamma = 0.5, interval = step)]
struct Pair {
    #[layer(one()?)]
    critic: Linear,
    #[layer(one()?)]
    generator: Linear,
}

fn three_to_one(pair: &mut Pair, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    for _ in 0..3 {
        let value = step.forward(|step| mean(&pair.critic, &batch.input, step))?;
        let _ = step.optimizer(0)?.minimize(&value, None)?;
    }
    let value = step.forward(|step| mean(&pair.generator, &batch.target, step))?;
    step.optimizer(1)?.minimize(&value, None).map(drop)
}

fn mean(layer: &Linear, input: &Tensor, step: &Step<'_>) -> Result<Tensor> {
    Ok(layer.forward(input, step.context())?.f_mean(None)?)
}

fn columns(input: [f32; 4], target: [f32; 4]) -> Result<DataModule> {
    let column = |values: [f32; 4]| Tensor::from_slice(&values).reshape([4, 1]);
    Ok(DataModule::training("columns", Batch::new(column(input), column(target))?, 1))
}

/// The user's manual step decides how many steps each optimizer and its schedule make. The loss
/// scale is updated once per batch. In the third batch, the generator's gradient overflows after
/// the critic's three updates. The generator's update is skipped, and the scale is halved once.
#[test]
fn optimizers_step_as_often_as_they_are_called() -> Result<()> {
    let data = columns([1.0; 4], [1.0, 1.0, 3e38, 1.0])?.in_order();
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F16Mixed, device()) }.with(
            |config| {
                config.numerics.scaler =
                    GradScalerConfig { init_scale: 8.0, growth_interval: 2, ..Default::default() }
            },
        );
    let mut pair = Pair::builder().build()?;
    let record = Trainer::new(config).fit(&mut pair, &data)?;
    assert_eq!(record.scales, [(2, 16.0), (3, 8.0)]);
    // A batch counts as a step if at least one optimizer has made a step.
    assert_eq!((record.end.global_step, record.end.skipped), (4, 0));
    let culprits: Vec<Option<&str>> =
        record.skips.iter().map(|skip| skip.culprit.as_deref()).collect();
    assert_eq!(culprits, [Some("generator.weight")]);
    let halving = |steps: i32| 0.25 * (0..steps).map(|step| 0.5f64.powi(step)).sum::<f64>();
    assert_eq!(values(pair.critic.weight()), [f64::from((1.0 - halving(12)) as f32)]);
    assert_eq!(values(pair.generator.weight()), [1.0 - halving(3)]);
    Ok(())
}

/// A critic w·x with the gradient penalty of WGAN-GP. The gradient of the critic with respect to x
/// is w, so the loss is (|w| - 1)². Its gradient 2 (|w| - 1) w / |w| needs a second derivative.
#[derive(LightningModule)]
#[manual_step(penalized)]
#[optimizer(sgd, lr = 0.5)]
struct Critic {
    #[layer(linear(2, 1))]
    body: Linear,
}

fn penalized(critic: &mut Critic, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    let value = step.forward(|step| {
        let input = batch.input.f_detach()?.f_requires_grad_(true)?;
        let score = critic.forward(&input, step.context())?.f_sum(Kind::Float)?;
        let gradient = Tensor::f_run_backward(&[score], &[&input], true, true)?.remove(0);
        let norm = gradient.f_norm_scalaropt_dim(2.0, [1_i64].as_slice(), false)?;
        Ok(norm.f_sub_scalar(1.0)?.f_square()?.f_mean(None)?)
    })?;
    step.optimizer(0)?.minimize(&value, None).map(drop)
}

#[rstest]
#[case(Precision::F32True, 1e-6)]
#[case(Precision::F64True, 1e-12)]
#[case(Precision::Bf16Mixed, 2e-2)]
#[case(Precision::F16Mixed, 2e-3)]
fn second_derivatives_reach_the_weights(
    #[case] precision: Precision,
    #[case] tolerance: f64,
) -> Result<()> {
    let mut critic = Critic::builder().build()?;
    amp_core::tch::no_grad(|| {
        let new = Tensor::from_slice(&[3.0_f32, 4.0]).reshape([1, 2]);
        critic.body.weight().shallow_clone().copy_(&new);
    });
    let batch = Batch::new(
        Tensor::ones([3, 2], (Kind::Float, Device::Cpu)),
        Tensor::zeros([3], (Kind::Float, Device::Cpu)),
    )?;
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }.with(|config| {
            config.numerics.scaler = GradScalerConfig { init_scale: 256.0, ..Default::default() }
        });
    Trainer::new(config).fit(&mut critic, &DataModule::training("ones", batch, 3))?;
    // |w| is 5, so the step gives w - 0.5 · 2 · 4 · w / 5.
    for (seen, expected) in values(critic.body.weight()).into_iter().zip([0.6, 0.8]) {
        assert!((seen - expected).abs() <= tolerance * 4.0, "found {seen}, expected {expected}");
    }
    Ok(())
}

/// A model that toggles an optimizer, so that a backward pass reaches only the parameters of this
/// optimizer. After the toggle ends, a backward pass reaches all parameters again, even if there
/// was an error.
#[derive(LightningModule)]
#[manual_step(toggled)]
#[optimizer(sgd, lr = 0.25, params = ["critic.*"])]
#[optimizer(sgd, lr = 0.25, params = ["generator.*"])]
struct Chain {
    #[layer(one()?)]
    generator: Linear,
    #[layer(one()?)]
    critic: Linear,
}

fn toggled(chain: &mut Chain, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    let both = |chain: &Chain, step: &Step<'_>| {
        let made = chain.generator.forward(&batch.input, step.context())?;
        mean(&chain.critic, &made, step)
    };
    step.toggled(0, |step| {
        let value = step.forward(|step| both(chain, step))?;
        let _ = step.optimizer(0)?.minimize(&value, None)?;
        assert!(!chain.generator.weight().grad().defined());
        Ok(())
    })?;
    let failed = step.toggled(0, |_| Err::<(), _>(Error::config("on purpose")));
    assert!(failed.is_err() && chain.generator.weight().requires_grad());
    let value = step.forward(|step| both(chain, step))?;
    step.optimizer(1)?.minimize(&value, None).map(drop)
}

#[test]
fn toggling_excludes_other_parameters() -> Result<()> {
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, device()) };
    let mut chain = Chain::builder().build()?;
    Trainer::new(config)
        .fit(&mut chain, &DataModule { batch_size: 4, ..columns([1.0; 4], [0.0; 4])? })?;
    // The loss is the product of two weights, so the gradient of each weight is the other weight.
    // The critic's weight becomes 1 - 0.25 · 1. The generator's weight then becomes 1 - 0.25 ·
    // 0.75.
    assert_eq!(values(chain.critic.weight()), [0.75]);
    assert_eq!(values(chain.generator.weight()), [1.0 - 0.25 * 0.75]);
    Ok(())
}

fn beyond(_: &mut Wrong, _: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    step.optimizer(1).map(drop)
}

#[derive(LightningModule)]
#[manual_step(beyond)]
#[optimizer(sgd, lr = 0.25)]
struct Wrong {
    #[layer(one()?)]
    layer: Linear,
}

fn idle(_: &mut Idle, _: &Batch, _: &mut ManualStep<'_>) -> Result<()> {
    Ok(())
}

/// A model whose validation step is a function of the user, so that the model needs no loss.
#[derive(LightningModule)]
#[manual_step(idle)]
#[validation_step(Self::measured)]
#[optimizer(sgd, lr = 0.25)]
struct Idle {
    #[layer(one()?)]
    layer: Linear,
}

impl Idle {
    fn measured(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<()> {
        let made = self.layer.forward(&batch.input, step.context())?;
        step.log("val_loss", &made.f_mean(None)?, batch.len(), LogOptions::ON_EPOCH)
    }
}

#[test]
fn a_manual_model_validates_by_its_own_function() -> Result<()> {
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, device()) };
    let data = DataModule { ..columns([1.0; 4], [0.0; 4])? };
    let data = data.with_val("", columns([2.0; 4], [0.0; 4])?.train);
    let record = Trainer::new(config).fit(&mut Idle::builder().build()?, &data)?;
    assert_eq!(record.last("val_loss"), Some(2.0));
    Ok(())
}

/// `first_loss` runs the user's manual step until its first backward pass, and returns the loss of
/// this backward pass with its autograd graph.
#[test]
fn a_manual_step_ends_at_its_first_loss() -> Result<()> {
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let context = Context::new(policy, true);
    let batch = Batch::new(
        Tensor::from_slice(&[3.0_f32]).view([1, 1]),
        Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)),
    )?
    .to_any()?;
    let of = |model: &mut dyn LightningModule| -> Result<Tensor> {
        nn::place(model, policy, &Default::default())?;
        first_loss(model, &batch, &mut Step::new(&context, &mut Log::default(), 0, 0))
    };
    let mut chain = Chain::builder().build()?;
    let loss = of(&mut chain)?;
    assert_eq!((loss.double_value(&[]), loss.requires_grad()), (3.0, true));
    loss.backward();
    // The critic's gradient is the generator's output for the input 3.
    assert_eq!(values(&chain.critic.weight().grad()), [3.0]);
    assert_eq!(values(chain.critic.weight()), [1.0]);
    let text = message(of(&mut Wrong::builder().build()?));
    assert!(text.contains("there is no optimizer 1: the model has 1"), "{text}");
    let text = message(of(&mut Idle::builder().build()?));
    assert_eq!(text, "the manual step of `Idle` ran no backward pass");
    Ok(())
}

/// Each invalid call is refused with an error of one line.
#[test]
fn invalid_calls_are_refused() -> Result<()> {
    let fit = |config: TrainerConfig| -> Result<RunRecord> {
        Trainer::new(config).fit(&mut Wrong::builder().build()?, &columns([1.0; 4], [0.0; 4])?)
    };
    let plain = || TrainerConfig::new(Precision::F16Mixed, device());
    let text = message(fit(plain()));
    assert!(text.contains("there is no optimizer 1: the model has 1, counted from 0"), "{text}");
    for (config, says) in [
        (
            plain().with(|config| config.optimization.gradient_clip = Some(Clip::Norm(1.0))),
            "gradient_clip",
        ),
        (
            plain().with(|config| config.optimization.accumulate_grad_batches = 2),
            "accumulate_grad_batches",
        ),
        (
            plain().with(|config| config.recovery.on_non_finite = NonFinite::LowerScale),
            "repeating a step",
        ),
        (plain().with(|config| config.memory.budget = Some(1)), "memory_budget"),
    ] {
        let text = message(fit(config));
        assert!(
            text.starts_with("`Wrong` optimizes manually, which does not allow")
                && text.contains(says),
            "{text}"
        );
    }
    let with_val = DataModule { ..columns([1.0; 4], [0.0; 4])? }
        .with_val("", columns([1.0; 4], [0.0; 4])?.train);
    let mut pair = Pair::builder().build()?;
    let text =
        message(Trainer::new(TrainerConfig { max_epochs: 1, ..plain() }).fit(&mut pair, &with_val));
    assert!(text.contains("`Pair` has no validation_step"), "{text}");
    Ok(())
}
