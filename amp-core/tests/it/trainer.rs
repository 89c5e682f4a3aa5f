//! Tests of the training loop: its events, the configurations that it refuses, and its effects on
//! the model.

use amp_core::{
    Error, Module, Result, Trainer, TrainerConfig,
    data::Order,
    event::{Event, FitEnd},
    log::Logged,
    nn::{Context, Linear, Op, Relu, Sequential, Visit, Visitor},
    optim::{AdamW, OptimizerConfig, Sgd},
    precision::{Clip, Precision, autocast_state},
    record::RunRecord,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    message,
    model::{Model, constant, demo, digits, fit, linear, same},
    seeded,
};

fn sgd(model: impl Module + 'static) -> Model {
    Model::regression(model, |_| OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() }))
}

fn config(precision: Precision) -> TrainerConfig {
    TrainerConfig { max_epochs: 2, ..TrainerConfig::new(precision, Device::Cpu) }
}

/// Returns the kind of the event, and the numbers that say where in the run it occurred.
fn brief(event: &Event) -> String {
    match event {
        Event::FitStart(start) => format!("start {}x{}", start.max_epochs, start.batches_per_epoch),
        Event::Note { .. } => "note".into(),
        Event::Observed(_) => "observed".into(),
        Event::Batch { epoch, batch, global_step, .. } => {
            format!("batch {epoch}.{batch} {global_step}")
        }
        Event::Skipped(skipped) => format!("skipped {}", skipped.attempt),
        Event::Scale { attempt, scale } => format!("scale {attempt} {scale}"),
        Event::Logged { global_step, values } => format!("logged {global_step} {}", values.len()),
        Event::EpochEnd(end) => format!("epoch {} {}", end.epoch, end.global_step),
        Event::FitEnd(end) => format!("end {}", end.global_step),
        other => format!("{other:?}"),
    }
}

/// The events of a run come in a fixed order. With a logging interval of 2, every second step of
/// the run is logged. The count does not begin again in each epoch.
#[test]
fn events_come_in_order() -> Result<()> {
    let _generator = seeded(0);
    let mut config = config(Precision::F16True);
    config.logging.log_every_n_steps = 2;
    let mut model = Model::regression(linear(3, 3)?, |_| OptimizerConfig::new(AdamW::default()));
    let (events, record) = fit(&config, &mut model, &same(constant(5, 3, 1.0)?, 2)?);
    record?;
    let seen: Vec<String> = events.iter().map(brief).collect();
    let expected = [
        "start 2x3",
        "note",
        "observed",
        "batch 0.0 1",
        "batch 0.1 2",
        "logged 2 1",
        "batch 0.2 3",
        "epoch 0 3",
        "batch 1.0 4",
        "logged 4 1",
        "batch 1.1 5",
        "batch 1.2 6",
        "logged 6 1",
        "epoch 1 6",
        "end 6",
    ];
    assert_eq!(seen, expected);
    Ok(())
}

/// The record of a run contains the values of the run's events.
#[test]
fn the_record_gathers_the_events() -> Result<()> {
    let _generator = seeded(0);
    let mut model = sgd(linear(3, 3)?);
    let (events, record) =
        fit(&config(Precision::Bf16Mixed), &mut model, &same(constant(5, 3, 1.0)?, 2)?);
    let record = record?;
    assert_eq!(record.epochs.len(), 2);
    assert_eq!((record.start.run.parameters, record.start.run.model.as_str()), (12, "Model"));
    let end = events.iter().find_map(|event| match event {
        Event::FitEnd(end) => Some(end.clone()),
        _ => None,
    });
    assert_eq!(Some(record.end.clone()), end);
    assert_eq!(record.last("val_loss"), record.epochs[1].val.first().map(|logged| logged.value));
    assert_eq!(record.last("train_loss"), record.epochs[1].train.first().map(|l| l.value));
    assert_eq!(record.last("nothing"), None);
    Ok(())
}

/// With the same seed, two runs have the same events, except for the times in the events.
#[rstest]
#[case(Precision::F32True)]
#[case(Precision::F16Mixed)]
fn a_run_is_reproducible(#[case] precision: Precision) -> Result<()> {
    let run = || -> Result<RunRecord> {
        let _generator = seeded(5);
        let optimizer = |_: &_| OptimizerConfig::new(AdamW::default());
        let mut model = Model {
            model: Box::new(demo(0.2)?),
            loss: amp_core::loss::cross_entropy,
            optimizer: Box::new(optimizer),
        };
        let mut record = fit(&config(precision), &mut model, &same(digits(100)?, 32)?).1?;
        record.end = FitEnd { seconds: 0.0, ..record.end };
        for epoch in &mut record.epochs {
            (epoch.train_seconds, epoch.val_seconds) = (0.0, 0.0);
        }
        Ok(record)
    };
    assert_eq!(run()?, run()?);
    Ok(())
}

/// The seed of the configuration determines the order of the examples.
#[test]
fn shuffling_follows_the_configured_seed() -> Result<()> {
    let losses = |seed, order| -> Result<Vec<Logged>> {
        let _generator = seeded(0);
        let mut config = config(Precision::F64True);
        (config.seed, config.max_epochs) = (seed, 1);
        let mut model = sgd(linear(64, 64)?);
        model.loss = |output, _| amp_core::loss::mse_loss(output, &output.zeros_like());
        let data = same(digits(40)?, 4)?.with_order(order);
        Ok(fit(&config, &mut model, &data).1?.epochs[0].train.clone())
    };
    assert_eq!(losses(1, Order::Shuffled)?, losses(1, Order::Shuffled)?);
    assert_ne!(losses(1, Order::Shuffled)?, losses(2, Order::Shuffled)?);
    assert_eq!(losses(1, Order::InOrder)?, losses(2, Order::InOrder)?);
    Ok(())
}

/// Validation computes no gradients, uses running statistics and applies no dropout.
#[test]
fn validation_changes_nothing_and_repeats_itself() -> Result<()> {
    let _generator = seeded(0);
    let mut config = config(Precision::F32True);
    config.max_epochs = 3;
    let mut model = Model {
        model: Box::new(demo(0.5)?),
        loss: amp_core::loss::cross_entropy,
        // The learning rate is 0, so that training changes only the running statistics.
        optimizer: Box::new(|_| OptimizerConfig::new(Sgd { lr: 0.0, ..Default::default() })),
    };
    let record = fit(&config, &mut model, &same(digits(64)?, 64)?).1?;
    let again = fit(
        &TrainerConfig { max_epochs: 1, ..config.clone() },
        &mut model,
        &same(digits(64)?, 64)?,
    );
    // Only the training batches changed the running statistics. The validations between them did
    // not.
    let tracked = amp_core::nn::named_tensors(&model)
        .into_iter()
        .find(|(name, ..)| name == "model.1.num_batches_tracked");
    assert_eq!(tracked.expect("a batch norm").1.int64_value(&[]), 4);
    assert!(record.last("val_loss").is_some_and(f64::is_finite));
    let again = again.1?;
    // A second validation with the same weights and statistics gives the same bits, because
    // validation applies no dropout.
    let data = same(digits(64)?, 64)?;
    let mut trainer = Trainer::new(config);
    let first = trainer.validate(&mut model, &data)?;
    assert_eq!(first, trainer.validate(&mut model, &data)?);
    let loss = first.iter().find(|logged| logged.name == "val_loss").expect("a loss").value;
    assert_eq!(again.last("val_loss"), Some(loss), "the loss that the run reported");
    // The loss also equals that of a forward pass in evaluation mode outside of the trainer.
    let batch = digits(64)?;
    let policy = amp_core::precision::Policy::new(Precision::F32True, Device::Cpu);
    let output = model.model.forward(&batch.input, &Context::new(policy, false))?;
    let by_hand = amp_core::loss::cross_entropy(&output, &batch.target)?.double_value(&[]);
    assert!((loss - by_hand).abs() < 1e-6, "{loss}, not {by_hand}");
    Ok(())
}

/// If a layer fails, the error contains the path of the module.
#[test]
fn an_error_names_the_module() -> Result<()> {
    let _generator = seeded(0);
    let layers: Vec<Box<dyn Module>> =
        vec![Box::new(linear(3, 4)?), Box::new(Relu), Box::new(linear(5, 3)?)];
    let (events, record) = fit(
        &config(Precision::F32True),
        &mut sgd(Sequential::new(layers)),
        &same(constant(4, 3, 1.0)?, 2)?,
    );
    let said = message(record);
    assert_eq!(
        said,
        "in `model.2`: libtorch: mat1 and mat2 shapes cannot be multiplied (2x4 and 5x3)"
    );
    assert_eq!(events.len(), 1, "only the event of the start");
    Ok(())
}

/// A layer that declares its output as that of a matrix product (`Op::Matmul`), but computes in f32
/// under every precision.
struct Stubborn(Linear);

impl Visit for Stubborn {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.0.visit(visitor);
    }
}

impl Module for Stubborn {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let weight = self.0.weight().to_kind(Kind::Float);
        Ok((input.to_kind(Kind::Float).unsqueeze(1) * weight).sum_dim_intlist(
            [-1_i64].as_slice(),
            false,
            Kind::Float,
        ))
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}

/// If a matrix product does not have the dtype that the precision prescribes, the run ends with an
/// error.
#[rstest]
#[case(Precision::F16Mixed, "the run does not compute in 16-mixed", "float16")]
#[case(Precision::Bf16Mixed, "the run does not compute in bf16-mixed", "bfloat16")]
fn a_precision_that_did_not_run_is_an_error(
    #[case] precision: Precision,
    #[case] says: &str,
    #[case] asked: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = sgd(Stubborn(linear(3, 3)?));
    let record = fit(&config(precision), &mut model, &same(constant(4, 3, 1.0)?, 2)?).1;
    assert!(matches!(record, Err(Error::Precision(_))));
    let said = message(record);
    let start = format!(
        "{says}: the output of `model` is float32, but the precision prescribes {asked}: convert"
    );
    assert!(said.starts_with(&start), "{said}");
    Ok(())
}

/// Rule 14 of docs/SEMANTICS.md: a run restores the autocast state, also if the run fails.
#[test]
fn a_run_restores_autocast() -> Result<()> {
    let _generator = seeded(0);
    let data = same(constant(4, 3, 1.0)?, 2)?;
    let before = autocast_state(Device::Cpu)?;
    fit(&config(Precision::F16Mixed), &mut sgd(linear(3, 3)?), &data).1?;
    assert_eq!(autocast_state(Device::Cpu)?, before);
    assert!(fit(&config(Precision::F16Mixed), &mut sgd(linear(4, 3)?), &data).1.is_err());
    assert_eq!(autocast_state(Device::Cpu)?, before);
    Ok(())
}

/// If a subscriber returns an error, the run ends with this error.
#[test]
fn a_subscribers_error_ends_the_run() -> Result<()> {
    let _generator = seeded(0);
    let mut seen = 0;
    let mut full = |event: &Event| match event {
        Event::Batch { .. } if seen == 1 => Err(Error::config("the disk is full")),
        Event::Batch { .. } => {
            seen += 1;
            Ok(())
        }
        _ => Ok(()),
    };
    let data = same(constant(8, 3, 1.0)?, 2)?;
    let mut model = sgd(linear(3, 3)?);
    let record =
        Trainer::new(config(Precision::F32True)).subscribe(&mut full).fit(&mut model, &data);
    assert_eq!(message(record), "the disk is full");
    assert_eq!(seen, 1);
    Ok(())
}

/// A run that cannot start is refused before any event and any change.
#[rstest]
#[case(|config: &mut TrainerConfig| config.max_epochs = 0, "max_epochs is 0, but must be at least 1")]
#[case(|config: &mut TrainerConfig| config.optimization.accumulate_grad_batches = 0, "accumulate_grad_batches is 0")]
#[case(|config: &mut TrainerConfig| config.logging.log_every_n_steps = -1, "log_every_n_steps is -1")]
#[case(|config: &mut TrainerConfig| config.optimization.gradient_clip = Some(Clip::Norm(0.0)), "needs a positive limit")]
#[case(|config: &mut TrainerConfig| config.numerics.scaler.growth_factor = 0.5, "growth factor is 0.5")]
fn a_configuration_that_cannot_run_is_refused(
    #[case] change: fn(&mut TrainerConfig),
    #[case] says: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let mut config = config(Precision::F16Mixed);
    change(&mut config);
    let (events, record) = fit(&config, &mut sgd(linear(3, 3)?), &same(constant(4, 3, 1.0)?, 2)?);
    let said = message(record);
    assert!(said.contains(says), "{said}");
    assert!(events.is_empty(), "{events:?}");
    Ok(())
}

#[test]
fn a_batch_larger_than_the_data_is_refused() -> Result<()> {
    let _generator = seeded(0);
    let (events, record) =
        fit(&config(Precision::F32True), &mut sgd(linear(3, 3)?), &same(constant(4, 3, 1.0)?, 5)?);
    assert!(message(record).contains("batch size 5 is larger than the 4 training examples"));
    assert!(events.is_empty());
    Ok(())
}

#[test]
fn a_model_without_parameters_is_refused() -> Result<()> {
    let record =
        fit(&config(Precision::F32True), &mut sgd(Relu), &same(constant(4, 3, 1.0)?, 2)?).1;
    assert!(message(record).contains("no parameters: give it at least one layer"));
    Ok(())
}
