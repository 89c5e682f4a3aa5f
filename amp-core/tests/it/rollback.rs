//! Tests that a skipped step changes nothing, and that a repeated step counts once.

use amp_core::{
    LightningModule, Result, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    nn::{self, BatchNorm, Dropout, Linear, Role},
    precision::{GradScalerConfig, Precision},
    provenance::Cause,
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::NonFinite,
};
use rstest::rstest;

use crate::support::{device, seeded};

/// A model with batch statistics, dropout and a count of steps.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[forward(|x| head(&drop(&norm(x)?)?))]
#[training_step(counted)]
#[optimizer(sgd, lr = 1e-4, momentum = 0.9)]
#[scheduler(step_lr, step_size = 1, gamma = 0.9, interval = step)]
struct Net {
    #[layer(batch_norm1d(4))]
    norm: BatchNorm,
    #[layer(dropout(0.5))]
    drop: Dropout,
    #[layer(linear(4, 2))]
    head: Linear,
    #[state]
    seen: i64,
}

fn counted(net: &mut Net, batch: &Batch, step: &mut amp_core::Step<'_>) -> Result<Tensor> {
    net.seen += 1;
    let output = amp_core::Module::forward(net, &batch.input, step.context())?;
    let loss = amp_core::loss::mse_loss(&output, &batch.target)?;
    step.log("train_loss", &loss, batch.len(), amp_core::log::LogOptions::ON_STEP)?;
    Ok(loss)
}

/// A model that records the index of each batch of its training steps. The loss of the batch with
/// the index `bad` is infinite.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[training_step(placed)]
#[optimizer(sgd, lr = 1e-4)]
struct Placed {
    #[hparam(default = -1)]
    bad: i64,
    #[layer(linear(4, 2))]
    head: Linear,
    #[state]
    seen: Vec<i64>,
}

fn placed(net: &mut Placed, batch: &Batch, step: &mut amp_core::Step<'_>) -> Result<Tensor> {
    let index = step.batch_idx() as i64;
    net.seen.push(index);
    let output = amp_core::Module::forward(net, &batch.input, step.context())?;
    let loss = amp_core::loss::mse_loss(&output, &batch.target)?;
    Ok(if index == net.bad { loss * f64::INFINITY } else { loss })
}

/// Returns `batches` batches of 8 examples. In the batches whose indices are in `overflowing`, the
/// targets are so large that f16 gradients overflow.
fn data(batches: i64, overflowing: &[i64]) -> Result<DataModule> {
    let _section = seeded(7);
    let options = (Kind::Float, Device::Cpu);
    let input = Tensor::randn([8 * batches, 4], options);
    let target = Tensor::randn([8 * batches, 2], options);
    for batch in overflowing {
        let _ = target.narrow(0, 8 * batch, 8).fill_(600.0);
    }
    let val = Batch::new(input.copy(), target.copy())?;
    Ok(DataModule::new("rows", Batch::new(input, target)?, val, 8).in_order())
}

fn config(on_non_finite: NonFinite) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F16Mixed, device()) }.with(
        |config| {
            config.recovery.on_non_finite = on_non_finite;
            config.numerics.scaler = GradScalerConfig { init_scale: 8192.0, ..Default::default() };
        },
    )
}

fn train(config: TrainerConfig, data: &DataModule) -> Result<(Net, RunRecord)> {
    let _section = seeded(0);
    let mut net = Net::builder().build()?;
    let record = Trainer::new(config).fit(&mut net, data)?;
    Ok((net, record))
}

/// Returns every tensor of a model, on the host.
fn tensors(net: &Net) -> Vec<(String, Tensor)> {
    let tensors = nn::named_tensors(net).into_iter();
    tensors.map(|(name, tensor, _)| (name, tensor.to_device(Device::Cpu).copy())).collect()
}

fn same(one: &Net, other: &Net) {
    for ((name, one), (_, other)) in tensors(one).into_iter().zip(tensors(other)) {
        assert!(one.equal(&other), "`{name}` differs: {one} and {other}");
    }
    assert_eq!(one.seen, other.seen);
}

/// A run whose third step is skipped ends like a run without the examples of this step. Weights,
/// batch statistics, optimizer, schedule, `#[state]` and the random numbers of dropout are equal.
#[test]
fn a_skipped_step_changes_nothing() -> Result<()> {
    let with = data(5, &[2])?;
    let (skipped, record) = train(config(NonFinite::Skip), &with)?;
    assert_eq!((record.end.skipped, record.end.global_step), (1, 4));
    // The run to compare with is trained on the same examples without the third batch.
    let all = with.train.head(40)?;
    let keep: Vec<i64> = (0..16).chain(24..40).collect();
    let index = Tensor::from_slice(&keep);
    let pick = |name| Ok::<_, amp_core::Error>(all.required(name)?.index_select(0, &index));
    let rest = Batch::new(pick("input")?, pick("target")?)?;
    let without = DataModule { train: rest.into(), ..with };
    // The skipped step has halved the loss scale only in the first run. The loss scale is a power
    // of two, so this does not change the bits.
    let (straight, record) = train(config(NonFinite::Skip), &without)?;
    assert_eq!(record.end.skipped, 0);
    same(&skipped, &straight);
    assert_eq!(skipped.seen, 4);
    Ok(())
}

/// With `skipped_step_advances`, as in Lightning and PyTorch, batch statistics include the batch
/// that overflowed.
#[test]
fn lightnings_rule_keeps_the_effects_of_a_skipped_step() -> Result<()> {
    let data = data(3, &[2])?;
    let advances =
        config(NonFinite::Skip).with(|config| config.recovery.skipped_step_advances = true);
    let (kept, record) = train(advances, &data)?;
    assert_eq!((record.end.skipped, kept.seen), (1, 3));
    let (undone, _) = train(config(NonFinite::Skip), &data)?;
    let buffer = |net: &Net| {
        let tensors = nn::named_tensors(net).into_iter();
        let buffers = tensors.filter(|(name, _, role)| {
            *role == Role::Buffer && name.ends_with("num_batches_tracked")
        });
        buffers.map(|(_, tensor, _)| tensor.int64_value(&[])).collect::<Vec<_>>()
    };
    assert_eq!((buffer(&kept), buffer(&undone)), (vec![3], vec![2]));
    Ok(())
}

/// If the examples of a step are repeated at a lower scale, the step counts once: the run ends like
/// a run that began with this scale.
#[rstest]
fn a_repeated_step_counts_once(#[values(1, 2)] window: i64) -> Result<()> {
    let data = data(4, &[1])?;
    let repeat = config(NonFinite::LowerScale)
        .with(|config| config.optimization.accumulate_grad_batches = window);
    let (repeated, record) = train(repeat.clone(), &data)?;
    assert!(record.end.skipped > 0, "nothing overflowed");
    let scale = record.end.scale.expect("a scale");
    let low = repeat.with(|config| {
        config.numerics.scaler = GradScalerConfig { init_scale: scale, ..Default::default() }
    });
    let (straight, record) = train(low, &data)?;
    assert_eq!(record.end.skipped, 0);
    same(&repeated, &straight);
    Ok(())
}

/// If a step is repeated at a lower scale, its batches have the same indices as in the first
/// attempt.
#[rstest]
fn a_repeated_step_has_the_indices_of_its_batches(#[values(1, 2)] window: i64) -> Result<()> {
    let _section = seeded(0);
    let mut net = Placed::builder().build()?;
    let repeat = config(NonFinite::LowerScale)
        .with(|config| config.optimization.accumulate_grad_batches = window);
    let record = Trainer::new(repeat).fit(&mut net, &data(4, &[3])?)?;
    assert!(record.end.skipped > 0, "nothing overflowed");
    assert_eq!(net.seen, [0, 1, 2, 3]);
    Ok(())
}

/// When the trainer repeats a skipped step to find the cause, the batches have the same indices as
/// in the first attempt.
#[rstest]
fn a_cause_is_searched_with_the_indices_of_the_batches(#[values(1, 2)] window: i64) -> Result<()> {
    let _section = seeded(0);
    let mut net = Placed::builder().bad(3).build()?;
    let config =
        config(NonFinite::Skip).with(|config| config.optimization.accumulate_grad_batches = window);
    let record = Trainer::new(config).fit(&mut net, &data(4, &[])?)?;
    let found = record.skips[0].provenance.as_ref().map(|found| &found.cause);
    assert_eq!(found, Some(&Cause::Loss));
    Ok(())
}
