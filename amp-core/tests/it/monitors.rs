//! Tests of callbacks that measure memory, speed, learning rates and gradients.

use std::{thread, time::Duration};

use amp_core::{
    Module, Result, Trainer, TrainerConfig,
    callback::{Callback, GradientStatistics, LearningRateMonitor, MemoryMonitor, SpeedBenchmark},
    event::Event,
    logger::MemoryLogger,
    nn::{Context, Sequential, Visit, Visitor},
    optim::{Adam, Interval, OneCycle, OptimizerConfig, ParamGroups, Sgd, StepLr, TrainingPlan},
    precision::{GradScalerConfig, Precision},
    record::RunRecord,
    tch::{Kind, Tensor},
};

use crate::support::{
    device,
    model::{Model, constant, in_order, linear},
    seeded,
};

fn sgd(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 0.5, ..Default::default() })
}

fn config(max_epochs: i64) -> TrainerConfig {
    TrainerConfig { max_epochs, ..TrainerConfig::new(Precision::F32True, device()) }
        .with(|config| config.logging.log_every_n_steps = 1)
}

/// Trains for four steps in each epoch and returns all logged values.
fn logged(
    config: TrainerConfig,
    model: &mut Model,
    callback: impl Callback,
) -> Result<(MemoryLogger, RunRecord)> {
    let mut history = MemoryLogger::default();
    let record = Trainer::new(config)
        .callback(callback)
        .subscribe(&mut history)
        .fit(model, &in_order(constant(8, 4, 0.0)?, 2)?)?;
    Ok((history, record))
}

/// A layer that allocates a tensor of `bytes` bytes in a training forward pass, and then sleeps for
/// the time `pause`.
struct Burden {
    bytes: i64,
    pause: Duration,
}

impl Visit for Burden {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Burden {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if cx.is_training() {
            drop(Tensor::f_zeros([self.bytes], (Kind::Uint8, input.device()))?);
            thread::sleep(self.pause);
        }
        Ok(input.shallow_clone())
    }
}

fn burdened(bytes: i64, pause: Duration) -> Result<Model> {
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(4, 4)?), Box::new(Burden { bytes, pause })];
    Ok(Model::regression(Sequential::new(layers), sgd))
}

#[test]
fn each_epochs_peak_memory_is_logged() -> Result<()> {
    let _generator = seeded(0);
    let mut model = burdened(64 << 20, Duration::ZERO)?;
    let (history, record) = logged(config(2), &mut model, MemoryMonitor::new())?;
    let peaks = history.get("memory_peak_mib");
    assert_eq!(peaks.len(), 2, "one peak per epoch");
    // On a CUDA device, other tests may allocate memory at the same time, so the limit is higher
    // there.
    let most = if device().is_cuda() { 4096.0 } else { 65.0 };
    assert!(peaks.iter().all(|(_, mib)| (63.5..most).contains(mib)), "{peaks:?}");
    assert_eq!(history.last("memory_reserved_mib").is_some(), device().is_cuda());
    assert!(record.epochs[0].value("memory_peak_mib").is_some());
    Ok(())
}

/// The time of each epoch and of each batch is logged. A sleep never ends early, so the sleeps are
/// lower bounds of the logged times.
#[test]
fn each_epochs_and_batchs_time_is_logged() -> Result<()> {
    let _generator = seeded(0);
    let mut model = burdened(1, Duration::from_millis(20))?;
    let (history, _) = logged(config(2), &mut model, SpeedBenchmark::new())?;
    let all = |name: &str, least: f64| {
        let values = history.get(name);
        values.len() == 2 && values.iter().all(|(_, value)| *value >= least)
    };
    assert!(all("epoch_seconds", 0.08), "{:?}", history.get("epoch_seconds"));
    assert!(all("batch_ms", 20.0) && all("batch_ms_p95", 20.0));
    let (median, p95) = (history.last("batch_ms"), history.last("batch_ms_p95"));
    assert!(median <= p95, "{median:?} {p95:?}");
    Ok(())
}

#[test]
fn the_rates_of_every_optimizer_and_group_are_logged() -> Result<()> {
    let _generator = seeded(0);
    let groups = |_: &TrainingPlan| {
        let base = Sgd { lr: 1.0, ..Default::default() };
        let groups = ParamGroups::new(base).group(["*.bias"], Sgd { lr: 4.0, ..base });
        OptimizerConfig::new(groups)
            .with_scheduler(StepLr { step_size: 1, gamma: 0.5 }, Interval::Step)
    };
    let mut model = Model::regression(linear(4, 4)?, groups);
    let (history, _) = logged(config(1), &mut model, LearningRateMonitor::new())?;
    let values =
        |name: &str| -> Vec<f64> { history.get(name).iter().map(|(_, value)| *value).collect() };
    // The learning rates are logged after the schedule has advanced, so each step logs the rates of
    // the next step.
    assert_eq!(values("lr-SGD/pg1_step"), [0.5, 0.25, 0.125, 0.0625]);
    assert_eq!(values("lr-SGD/pg2_step"), [2.0, 1.0, 0.5, 0.25]);
    let cycle = |plan: &TrainingPlan| {
        let total_steps = plan.estimated_stepping_batches;
        OptimizerConfig::new(Adam::default())
            .with_scheduler(OneCycle { total_steps, ..Default::default() }, Interval::Step)
    };
    let mut model = Model::regression(linear(4, 4)?, cycle);
    let monitor = LearningRateMonitor::new().log_momentum();
    let (history, _) = logged(config(1), &mut model, monitor)?;
    assert_eq!(history.get("lr-Adam_step").len(), 4);
    let momenta = history.get("lr-Adam-momentum_step");
    assert!(momenta.iter().all(|(_, value)| (0.85..=0.95).contains(value)), "{momenta:?}");
    Ok(())
}

/// `GradientStatistics` describes the gradients before they are clipped. The model is one layer
/// whose parameters are zero, except for one bias of 1. All inputs are 1 and all targets are 0.
#[test]
fn gradients_are_described_before_they_are_clipped() -> Result<()> {
    let _generator = seeded(0);
    let model = || -> Result<Model> {
        let layer = linear(4, 4)?;
        amp_core::tch::no_grad(|| {
            for parameter in amp_core::nn::parameters(&layer) {
                let _ = parameter.tensor.shallow_clone().fill_(0.0);
            }
            // One of the four outputs differs from its target by one. The gradients of the
            // remaining outputs are zero.
            let bias = amp_core::nn::parameters(&layer).remove(1).tensor;
            let _ = bias.select(0, 0).fill_(1.0);
        });
        Ok(Model::regression(layer, sgd))
    };
    let config = TrainerConfig { max_steps: Some(1), ..config(1) }.with(|config| {
        config.optimization.gradient_clip = Some(amp_core::precision::Clip::Norm(1e-3))
    });
    let (history, _) = logged(config.clone(), &mut model()?, GradientStatistics::new())?;
    let last = |name: &str| history.last(name).expect("a value");
    // The loss is the mean over two examples with four outputs, so dL/dy = 2·1/8 for each example.
    let each = 2.0 / 8.0 * 2.0;
    assert!((last("grad_norm/model.bias_step") - each).abs() < 1e-6);
    assert!((last("grad_norm/model.weight_step") - 2.0 * each).abs() < 1e-6);
    assert!((last("grad_norm_step") - 5.0_f64.sqrt() * each).abs() < 1e-6);
    assert_eq!(last("grad_zero/model.weight_step"), 0.75);
    assert_eq!(last("grad_zero/model.bias_step"), 0.75);
    assert_eq!(last("grad_nan/model.weight_step"), 0.0);
    let (history, _) = logged(config, &mut model()?, GradientStatistics::norm_only())?;
    assert!(history.last("grad_norm_step").is_some());
    assert!(history.get("grad_norm/model.bias_step").is_empty());
    Ok(())
}

/// If the scaled gradients of a step overflow, `GradientStatistics` counts the overflowed elements.
#[test]
fn an_overflow_shows_in_the_gradients_description() -> Result<()> {
    let _generator = seeded(0);
    let scaler = GradScalerConfig { init_scale: 2f64.powi(60), ..Default::default() };
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F16Mixed, device()) }.with(
            |config| {
                config.numerics.scaler = scaler;
                config.logging.log_every_n_steps = 1;
            },
        );
    let mut model = Model::regression(linear(4, 4)?, sgd);
    let mut counts = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Logged { values, .. } = event {
            let bad = values.iter().filter(|logged| {
                ["grad_inf/model.weight", "grad_nan/model.weight"].contains(&logged.name.as_str())
            });
            counts.push(bad.map(|logged| logged.value).sum::<f64>());
        }
        Ok(())
    };
    let record = Trainer::new(config)
        .callback(GradientStatistics::new())
        .subscribe(&mut listen)
        .fit(&mut model, &in_order(constant(8, 4, 3.0)?, 2)?)?;
    assert_eq!(record.end.skipped, 4);
    assert!(counts.iter().all(|count| *count > 0.0), "{counts:?}");
    Ok(())
}
