//! Tests of the averages of the weights (EMA and SWA), against averages that the tests compute
//! themselves.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Hook, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback, Mode, ModelCheckpoint},
    data::DataModule,
    nn::{self, BatchNorm, Linear},
    precision::{GradScalerConfig, Precision, StepOutcome},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
    trainer::{Averaging, Graph, StepAccess},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::support::{
    device, message,
    model::{digits, same},
    seeded,
};

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 0.01)]
struct Net {
    #[layer(linear(64, 16))]
    body: Linear,
    #[layer(batch_norm1d(16))]
    norm: BatchNorm,
    #[layer(linear(16, 10))]
    head: Linear,
}

/// A callback that records one weight after each applied step, or after each epoch.
struct Follow {
    weight: Tensor,
    each_step: bool,
    seen: Rc<RefCell<Vec<Tensor>>>,
}

impl Follow {
    fn keep(&self) {
        let weight = self.weight.detach().to_device(Device::Cpu).to_kind(Kind::Double);
        self.seen.borrow_mut().push(weight.copy());
    }
}

impl Callback for Follow {
    fn name(&self) -> String {
        "Follow".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::PerStep
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if self.each_step && outcome == Some(&StepOutcome::Applied) {
            self.keep();
        }
        Ok(Vec::new())
    }

    fn on_train_epoch_end(&mut self, _: &mut Hook<'_>) -> Result<()> {
        if !self.each_step {
            self.keep();
        }
        Ok(())
    }
}

fn config(precision: Precision, averaging: Averaging) -> TrainerConfig {
    TrainerConfig { max_epochs: 4, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.optimization.averaging = Some(averaging);
        // With this scaler, the first steps overflow, and the loss scale grows several times.
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2f64.powi(20),
            growth_interval: 5,
            ..Default::default()
        };
    })
}

fn data() -> Result<DataModule> {
    same(digits(256)?, 32)
}

fn net() -> Result<Net> {
    let _section = seeded(0);
    Net::builder().build()
}

/// The summary counts the averages of 16-bit tensors as f32, the dtype in which they are stored.
#[rstest]
#[case(Precision::F32True, 1)]
#[case(Precision::Bf16True, 2)]
fn the_summary_counts_averages_in_their_dtype(
    #[case] precision: Precision,
    #[case] factor: u64,
) -> Result<()> {
    let summary = Trainer::new(config(precision, EMA)).summary(&mut net()?, &data()?)?;
    // Batch norm's count of batches is an i64 of 8 bytes in every precision.
    let count = 8;
    let floats = summary.memory.parameters + summary.memory.buffers - count;
    assert_eq!(summary.memory.averages, factor * floats + count);
    Ok(())
}

const EMA: Averaging = Averaging::Ema { decay: 0.8 };
const SWA: Averaging = Averaging::Swa { start_epoch: 1 };

/// The average of one weight follows its definition: the test computes it in f64 from the weight
/// after each applied step or epoch. Skipped steps do not change the average.
#[rstest]
fn averages_equal_their_definition(
    #[values(EMA, SWA)] averaging: Averaging,
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let data = data()?;
    let mut model = net()?;
    let seen = Rc::new(RefCell::new(Vec::new()));
    let each_step = averaging == EMA;
    let weight = model.head.weight().shallow_clone();
    let follow = Follow { weight, each_step, seen: seen.clone() };
    let record =
        Trainer::new(config(precision, averaging)).callback(follow).fit(&mut model, &data)?;
    assert_eq!(record.end.skipped > 0, precision == Precision::F16Mixed);
    assert_eq!(record.end.replayed > 0, device().is_cuda(), "{:?}", record.notes);
    let seen = seen.take();
    assert_eq!(seen.len() as u64, if each_step { record.end.global_step } else { 4 });
    let expected = match each_step {
        true => seen.iter().skip(1).fold(seen[0].copy(), |sum, weight| sum * 0.8 + weight * 0.2),
        false => (&seen[1] + &seen[2] + &seen[3]) / 3.0,
    };
    let average = model.head.weight().detach().to_device(Device::Cpu).to_kind(Kind::Double);
    assert!(average.allclose(&expected, 1e-5, 1e-6, false));
    assert!(!average.allclose(seen.last().expect("a step"), 1e-3, 1e-4, false));
    Ok(())
}

fn tensors(model: &Net) -> Vec<(String, Tensor)> {
    let all = nn::named_tensors(model).into_iter();
    all.map(|(name, tensor, _)| (name, tensor.to_device(Device::Cpu).copy())).collect()
}

/// If weights are averaged, validation runs with the averaged weights, and the saved file contains
/// them. A resumed run ends with the same weights and the same average as an uninterrupted run.
#[rstest]
fn validation_and_files_have_the_average(
    #[values(EMA, SWA)] averaging: Averaging,
    #[values(Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let folder = tempdir().expect("a folder");
    let data = data()?;
    let run = |epochs: i64, resume: bool| -> Result<(Net, RunRecord)> {
        let mut model = net()?;
        let config = TrainerConfig { max_epochs: epochs, ..config(precision, averaging) };
        let mut trainer = Trainer::new(config);
        trainer = match resume {
            true => trainer.resume_from(folder.path().join("last.safetensors")),
            false => trainer.callback(
                ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true),
            ),
        };
        let record = trainer.fit(&mut model, &data)?;
        Ok((model, record))
    };
    let (straight, record) = run(4, false)?;
    let mut again = net()?;
    amp_core::weights::load(&again, &folder.path().join("last.safetensors"))?;
    let loaded = tensors(&again);
    let plain = TrainerConfig::new(precision, device());
    let values = Trainer::new(plain).validate(&mut again, &data)?;
    assert_eq!(Some(values[0].value), record.last("val_loss"));
    for ((name, one), (_, other)) in tensors(&straight).into_iter().zip(loaded) {
        assert!(one.equal(&other), "{name}");
    }
    run(2, false)?;
    let (resumed, _) = run(4, true)?;
    for ((name, one), (_, other)) in tensors(&straight).into_iter().zip(tensors(&resumed)) {
        assert!(one.equal(&other), "{name}");
    }
    let mut without = net()?;
    let plain = TrainerConfig { max_epochs: 4, ..TrainerConfig::new(precision, device()) };
    let refused = Trainer::new(plain)
        .resume_from(folder.path().join("last.safetensors"))
        .fit(&mut without, &data);
    assert!(message(refused).contains("whose averaging is"));
    Ok(())
}

/// The average of the weights has the same bits with and without CUDA graphs.
#[test]
fn averages_are_the_same_with_graphs() -> Result<()> {
    let data = data()?;
    let run = |graph: Graph| -> Result<Vec<(String, Tensor)>> {
        let mut model = net()?;
        let config = TrainerConfig { graph, ..config(Precision::F16Mixed, EMA) };
        Trainer::new(config).fit(&mut model, &data)?;
        Ok(tensors(&model))
    };
    for ((name, one), (_, other)) in run(Graph::Off)?.into_iter().zip(run(Graph::Auto)?) {
        assert!(one.equal(&other), "{name}");
    }
    Ok(())
}

#[rstest]
#[case(Averaging::Ema { decay: 1.0 }, "the decay of the average is 1, but must be")]
#[case(Averaging::Swa { start_epoch: -1 }, "the average's start_epoch is -1")]
fn invalid_averages_are_refused(#[case] averaging: Averaging, #[case] says: &str) -> Result<()> {
    let run = Trainer::new(config(Precision::F32True, averaging)).fit(&mut net()?, &data()?);
    assert!(message(run).starts_with(says));
    Ok(())
}

/// The average of 16-bit weights is near the average that the test computes in f64, although most
/// of its changes are smaller than the spacing of 16-bit numbers.
#[rstest]
fn averages_of_16_bit_weights_change(
    #[values(Precision::Bf16True, Precision::F16True)] precision: Precision,
) -> Result<()> {
    const DECAY: f64 = 0.99;
    let data = data()?;
    let mut model = net()?;
    let seen = Rc::new(RefCell::new(Vec::new()));
    let weight = model.head.weight().shallow_clone();
    let follow = Follow { weight, each_step: true, seen: seen.clone() };
    let config =
        TrainerConfig { max_epochs: 8, ..config(precision, Averaging::Ema { decay: DECAY }) };
    Trainer::new(config).callback(follow).fit(&mut model, &data)?;
    let seen = seen.take();
    let average_of = |sum: Tensor, weight: &Tensor| sum * DECAY + weight * (1.0 - DECAY);
    let expected = seen.iter().skip(1).fold(seen[0].copy(), average_of);
    let average = model.head.weight().detach().to_device(Device::Cpu).to_kind(Kind::Double);
    let spacing = if precision == Precision::F16True { 2f64.powi(-10) } else { 2f64.powi(-7) };
    assert!(average.allclose(&expected, spacing, 1e-4, false));
    assert!(!average.allclose(&seen[0], 10.0 * spacing, 1e-2, false));
    Ok(())
}
