//! Tests of gradient accumulation in models that step their optimizers themselves.

use amp_core::{
    LightningModule, Module, Result, Trainer, TrainerConfig,
    data::Batch,
    loss,
    nn::{self, Linear},
    precision::{Clip, GradScalerConfig, Precision},
    record::RunRecord,
    trainer::{Averaging, ManualStep},
};
use rstest::rstest;

use crate::{
    manual::{Automatic, rows},
    support::{device, seeded},
};

/// The same model as `Automatic`. Its manual step adds the gradients of two batches.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[manual_step(every_second)]
#[optimizer(adamw, lr = 0.01)]
#[scheduler(step_lr, step_size = 2, gamma = 0.5, interval = step)]
struct ByHand {
    #[layer(linear(4, 8))]
    body: Linear,
    #[layer(linear(8, 2))]
    head: Linear,
}

fn every_second(net: &mut ByHand, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    assert_eq!(step.global_step() % 3, step.batch_idx() as u64 / 2, "steps, not batches");
    let value = step.forward(|step| {
        loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)
    })?;
    let is_last = step.batch_idx() % 2 == 1;
    let mut optimizer = step.optimizer(0)?;
    let gradients = optimizer.accumulate(&value.f_div_scalar(2.0)?)?;
    if is_last {
        let gradients = optimizer.unscale(gradients)?;
        let _ = gradients.clip_grad_norm(0.5)?;
        let _ = optimizer.step(gradients)?;
    }
    Ok(())
}

fn config(precision: Precision, epochs: i64, growth_interval: i64) -> TrainerConfig {
    TrainerConfig { max_epochs: epochs, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.numerics.scaler =
            GradScalerConfig { init_scale: 1024.0, growth_interval, ..Default::default() };
    })
}

fn train(model: &mut dyn LightningModule, config: TrainerConfig) -> Result<RunRecord> {
    Trainer::new(config).fit(model, &rows(24)?)
}

/// Checks that gradients that a manual step adds over two batches give the weights, averaged
/// weights, loss scales and number of steps of `accumulate_grad_batches = 2`.
#[rstest]
fn a_manual_step_accumulates_as_the_trainer_does(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    let config = || {
        config(precision, 1, 2).with(|config| {
            config.optimization.averaging = Some(Averaging::Ema { decay: 0.5 });
        })
    };
    let accumulating = config().with(|config| {
        config.optimization.gradient_clip = Some(Clip::Norm(0.5));
        config.optimization.accumulate_grad_batches = 2;
    });
    let mut automatic = {
        let _section = seeded(0);
        Automatic::builder().build()?
    };
    let mut manual = {
        let _section = seeded(0);
        ByHand::builder().build()?
    };
    let expected = train(&mut automatic, accumulating)?;
    let seen = train(&mut manual, config())?;
    assert_eq!(seen.end.global_step, 3);
    assert_eq!(seen.end.global_step, expected.end.global_step);
    assert_eq!(seen.scales, expected.scales);
    assert!(!seen.notes.iter().any(|note| note.contains("dropped")), "{:?}", seen.notes);
    for (one, other) in nn::parameters(&manual).iter().zip(nn::parameters(&automatic)) {
        let away = (&one.tensor - &other.tensor).abs().max().double_value(&[]);
        assert!(away < 1e-6, "`{}`: {away}", one.name);
    }
    Ok(())
}

/// Two layers with an optimizer each. One steps in each batch, so that the loss scale changes in
/// each batch. The other adds the gradients of two batches.
#[derive(LightningModule)]
#[forward(|x| Ok(first(x)?.f_add(&second(x)?)?))]
#[loss(mse_loss)]
#[manual_step(apart)]
#[optimizer(sgd, lr = 0.1, params = ["first.*"])]
#[optimizer(sgd, lr = 0.1, params = ["second.*"])]
struct Apart {
    #[layer(linear(4, 2))]
    first: Linear,
    #[layer(linear(4, 2))]
    second: Linear,
}

fn apart(net: &mut Apart, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    let mut of = |layer: &Linear, name: &str| {
        step.forward(|step| {
            let output = step.context().call(name, None, layer, &batch.input)?;
            loss::mse_loss(&output, &batch.target)
        })
    };
    let (one, other) = (of(&net.first, "first")?, of(&net.second, "second")?);
    let is_last = step.batch_idx() % 2 == 1;
    let mut second = step.optimizer(1)?;
    let gradients = second.accumulate(&other)?;
    if is_last {
        let gradients = second.unscale(gradients)?;
        let _ = second.step(gradients)?;
    }
    step.optimizer(0)?.minimize(&one, None).map(drop)
}

/// Checks that gradients that were added under different loss scales have the same sum as without
/// a loss scale.
#[test]
fn a_change_of_the_loss_scale_does_not_change_the_sum() -> Result<()> {
    let trained = |precision| -> Result<(Apart, RunRecord)> {
        let mut model = {
            let _section = seeded(0);
            Apart::builder().build()?
        };
        let record = train(&mut model, config(precision, 1, 1))?;
        Ok((model, record))
    };
    let (expected, _) = trained(Precision::F32True)?;
    let (seen, record) = trained(Precision::F16Mixed)?;
    assert!(record.scales.len() >= 6, "the scale grows in each batch: {:?}", record.scales);
    for (one, other) in nn::parameters(&seen).iter().zip(nn::parameters(&expected)) {
        let away = (&one.tensor - &other.tensor).norm() / other.tensor.norm();
        assert!(away.double_value(&[]) < 0.005, "`{}`: {away:?}", one.name);
    }
    Ok(())
}

/// A model that steps after every second batch, as `ByHand` does, but calls `backward`, which drops
/// the gradients of the previous batch.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[manual_step(dropping)]
#[optimizer(sgd, lr = 0.1)]
struct Dropping {
    #[layer(linear(4, 2))]
    layer: Linear,
}

fn dropping(net: &mut Dropping, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    let value = step.forward(|step| {
        loss::mse_loss(&net.forward(&batch.input, step.context())?, &batch.target)
    })?;
    let is_last = step.batch_idx() % 2 == 1;
    let mut optimizer = step.optimizer(0)?;
    let gradients = optimizer.backward(&value)?;
    if is_last {
        let gradients = optimizer.unscale(gradients)?;
        let _ = optimizer.step(gradients)?;
    }
    Ok(())
}

/// Checks that batches in which no optimizer steps are not counted as steps, and that one note says
/// that their gradients are dropped.
#[test]
fn a_batch_without_an_optimizer_step_is_no_step() -> Result<()> {
    let mut model = Dropping::builder().build()?;
    let record = train(&mut model, config(Precision::F32True, 2, 2))?;
    assert_eq!(record.end.global_step, 6, "every second of 12 batches");
    let notes: Vec<&String> =
        record.notes.iter().filter(|note| note.contains("`accumulate`")).collect();
    assert_eq!(notes.len(), 1, "{:?}", record.notes);
    assert!(notes[0].starts_with("in batch 0 a backward pass ran"), "{notes:?}");
    let limited = config(Precision::F32True, 9, 2).with(|config| config.max_steps = Some(4));
    assert_eq!(train(&mut model, limited)?.end.global_step, 4, "`max_steps` counts steps");
    Ok(())
}
