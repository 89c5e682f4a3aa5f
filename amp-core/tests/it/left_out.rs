//! Tests of steps that accumulate several batches, or that split a batch into micro-batches. The
//! gradient and the logged values of such a step equal those of one large batch, even if some
//! targets are ignored.

use amp_core::{Trainer, TrainerConfig, event::Event, nn, prelude::*, record::RunRecord};
use rstest::rstest;

use crate::support::{bits::values, device, layers::Room, message, seeded};

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[log(train_loss, on_step, on_epoch)]
#[optimizer(sgd, lr = 0.5)]
struct OfClasses {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[layer(linear(4, 3))]
    head: Linear,
}

#[derive(LightningModule)]
#[loss(
    with = |output, target| loss::weighted_cross_entropy(output, target, &self.weights),
    of = examples,
    counts = |target| loss::sum_of_weights(target, &self.weights)
)]
#[metric(accuracy, name = acc)]
#[log(train_loss, on_step, on_epoch)]
#[optimizer(sgd, lr = 0.5)]
struct OfWeightedClasses {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[buffer(init = Tensor::from_slice(&[0.25_f32, 1.0, 8.0]))]
    weights: Tensor,
    #[layer(linear(4, 3))]
    head: Linear,
}

/// Returns twelve examples. All targets of the first four examples are ignored, and some targets of
/// the remaining examples.
fn examples() -> Result<Batch> {
    let _section = seeded(11);
    let input = Tensor::f_randn([12, 4], (Kind::Float, Device::Cpu))?;
    let target = [-100_i64, -100, -100, -100, 2, -100, 1, 0, 2, 2, -100, 1];
    Batch::new(input, Tensor::from_slice(&target))
}

fn config(window: i64) -> TrainerConfig {
    TrainerConfig::new(Precision::F64True, Device::Cpu).with(|config| {
        config.max_epochs = 1;
        config.logging.log_every_n_steps = 1;
        config.optimization.accumulate_grad_batches = window;
    })
}

/// The results of a run over the twelve examples.
struct Ran {
    weights: Vec<f64>,
    record: RunRecord,
    /// The loss that each step logged.
    logged: Vec<f64>,
    notes: Vec<String>,
}

fn train(model: &mut dyn LightningModule, batch: i64, window: i64) -> Result<Ran> {
    train_on(Device::Cpu, model, batch, window)
}

fn train_on(
    device: Device,
    model: &mut dyn LightningModule,
    batch: i64,
    window: i64,
) -> Result<Ran> {
    let (mut logged, mut notes) = (Vec::new(), Vec::new());
    let mut listen = |event: &Event| -> Result<()> {
        match event {
            Event::Logged { values, .. } => logged.push(values[0].value),
            Event::Note { text } => notes.push(text.clone()),
            _ => {}
        }
        Ok(())
    };
    let data = DataModule::new("classes", examples()?, examples()?, batch).in_order();
    let config = TrainerConfig { device, ..config(window) };
    let record = Trainer::new(config).subscribe(&mut listen).fit(model, &data)?;
    let weights = nn::parameters(model).iter().flat_map(|own| values(&own.tensor)).collect();
    Ok(Ran { weights, record, logged, notes })
}

fn of_classes(room: i64) -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfClasses::builder().room(room).build()?))
}

fn of_weighted_classes(room: i64) -> Result<Box<dyn LightningModule>> {
    Ok(Box::new(OfWeightedClasses::builder().room(room).build()?))
}

type Build = fn(i64) -> Result<Box<dyn LightningModule>>;

/// transformers#24725: one step on twelve examples gives the same weights, logged loss and
/// validation results in four cases: with accumulated batches, with micro-batches for lack of
/// memory, with both, and with one batch of twelve.
#[rstest]
fn ignored_targets_do_not_count_in_a_window(
    #[values(of_classes as Build, of_weighted_classes as Build)] build: Build,
    #[values((4, 3, 100), (2, 6, 100), (12, 1, 3), (6, 2, 2), (1, 12, 100))] (batch, window, room): (
        i64,
        i64,
        i64,
    ),
) -> Result<()> {
    let run = |batch, window, room| -> Result<Ran> {
        let mut model = {
            let _section = seeded(3);
            build(room)?
        };
        train_on(device(), model.as_mut(), batch, window)
    };
    let (whole, parts) = (run(12, 1, 100)?, run(batch, window, room)?);
    assert_eq!((parts.record.end.global_step, parts.record.end.skipped), (1, 0));
    for (seen, expected) in parts.weights.iter().zip(&whole.weights) {
        assert!((seen - expected).abs() < 1e-13, "found {seen}, expected {expected}");
    }
    let close = |seen: f64, expected: f64| (seen - expected).abs() < 1e-12;
    assert!(close(parts.logged[0], whole.logged[0]), "{:?} {:?}", parts.logged, whole.logged);
    for name in ["train_loss", "train_acc", "val_loss", "val_acc"] {
        let value = |ran: &Ran| ran.record.epochs[0].value(name).expect("it is logged");
        assert!(close(value(&parts), value(&whole)), "{name}");
    }
    assert_eq!(parts.notes, [""; 0]);
    Ok(())
}

/// Trains on all twelve examples in three steps, or on the last eight examples in two steps. All
/// targets of the first four examples are ignored.
fn in_steps(precision: Precision, all: bool, advances: bool) -> Result<(Ran, Option<f64>)> {
    let mut model = {
        let _section = seeded(3);
        OfClasses::builder().build()?
    };
    let (mut logged, mut notes) = (Vec::new(), Vec::new());
    let mut listen = |event: &Event| -> Result<()> {
        match event {
            Event::Logged { values, .. } => logged.push(values[0].value),
            Event::Note { text } => notes.push(text.clone()),
            _ => {}
        }
        Ok(())
    };
    let Batch { input, target } = examples()?;
    let from = if all { 0 } else { 4 };
    let part =
        Batch::new(input.f_narrow(0, from, 12 - from)?, target.f_narrow(0, from, 12 - from)?)?;
    let data = DataModule::new("classes", part, examples()?, 4).in_order();
    let config = config(1).with(|config| {
        (config.precision, config.device) = (precision, device());
        config.numerics.scaler.growth_interval = 2;
        config.recovery.skipped_step_advances = advances;
    });
    let record = Trainer::new(config).subscribe(&mut listen).fit(&mut model, &data)?;
    let weights = nn::parameters(&model).iter().flat_map(|own| values(&own.tensor)).collect();
    let scale = record.end.scale;
    Ok((Ran { weights, record, logged, notes }, scale))
}

/// A step whose targets are all ignored changes neither the weights nor the loss scale nor the
/// growth tracker. A note names the step.
#[rstest]
fn a_step_without_targets_changes_nothing(
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let ((ran, scale), (without, expected)) =
        (in_steps(precision, true, false)?, in_steps(precision, false, false)?);
    assert_eq!(ran.weights, without.weights);
    assert_eq!(scale, expected);
    assert_eq!(scale, precision.scales_loss().then_some(131_072.0));
    let counts = |ran: &Ran| (ran.record.end.global_step, ran.record.end.skipped);
    assert_eq!((counts(&ran), counts(&without)), ((2, 0), (2, 0)));
    for name in ["train_loss", "train_acc", "val_loss"] {
        let value = |ran: &Ran| ran.record.epochs[0].value(name).expect("it is logged");
        assert_eq!(value(&ran), value(&without), "{name}");
    }
    assert_eq!(
        ran.notes,
        [
            "no target of the step at batch 0 of epoch 0 counts in the loss (all are ignored, or their \
             weights are 0): such a step changes nothing, and is not counted as skipped"
        ]
    );
    Ok(())
}

/// With `skipped_step_advances`, a step whose targets are all ignored is skipped like a step that
/// overflows, as in PyTorch, and the loss scale decreases.
#[test]
fn under_pytorchs_rule_a_step_without_targets_lowers_the_scale() -> Result<()> {
    let (ran, scale) = in_steps(Precision::F16Mixed, true, true)?;
    assert_eq!((ran.record.end.global_step, ran.record.end.skipped), (3, 1));
    assert_eq!(scale, Some(65_536.0));
    Ok(())
}

/// The cross entropy with class weights equals libtorch's, and the sum of the weights counts only
/// targets that are not ignored.
#[test]
fn weighted_classes_equal_libtorchs() -> Result<()> {
    let Batch { input, target } = examples()?;
    let weights = Tensor::from_slice(&[0.25_f64, 1.0, 8.0]);
    let logits = input.f_narrow(1, 0, 3)?.f_to_kind(Kind::Double)?;
    let expected = logits.f_cross_entropy_loss(
        &target,
        Some(&weights),
        amp_core::tch::Reduction::Mean,
        -100,
        0.0,
    )?;
    let seen = loss::weighted_cross_entropy(&logits, &target, &weights)?;
    assert_eq!(seen.double_value(&[]), expected.double_value(&[]));
    // The targets that are not ignored are 2, 1, 0, 2, 2 and 1.
    let counted = loss::sum_of_weights(&target, &weights)?;
    assert_eq!(counted.double_value(&[]), 3.0 * 8.0 + 2.0 * 1.0 + 0.25);
    let half = loss::weighted_cross_entropy(
        &logits.f_to_kind(Kind::BFloat16)?,
        &target,
        &weights.f_to_kind(Kind::Float)?,
    )?;
    assert_eq!(half.kind(), Kind::BFloat16);
    let said = message(loss::weighted_cross_entropy(&logits, &target, &weights.f_narrow(0, 0, 2)?));
    assert!(
        said.contains("the class weights are float64 [2], but must be floating-point [3]"),
        "{said}"
    );
    Ok(())
}

/// A user-defined loss that ignores some targets but does not declare it.
#[derive(LightningModule)]
#[loss(with = |output, target| loss::cross_entropy(output, target))]
#[optimizer(sgd, lr = 0.5)]
struct Own {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[layer(linear(4, 3))]
    head: Linear,
}

#[test]
fn an_own_loss_without_a_declaration_is_noted() -> Result<()> {
    let ran = train(&mut Own::builder().build()?, 6, 2)?;
    assert_eq!(ran.notes.len(), 1);
    assert!(ran.notes[0].contains("declare the weight of a batch, as in `counts = |target| …`"));
    let ran = train(&mut Own::builder().room(6).build()?, 12, 1)?;
    assert_eq!(ran.notes.len(), 1);
    let expected = "the mean of the losses of the parts is not the batch's loss";
    assert!(ran.notes[0].contains(expected), "{}", ran.notes[0]);
    Ok(())
}

/// A model whose loss is a mean over the pairs of examples in a batch. If the batch were split, the
/// loss would be different.
#[derive(LightningModule)]
#[loss(with = |output, _| Ok(output.f_matmul(&output.f_tr()?)?.f_mean(output.kind())?), of = batch)]
#[optimizer(sgd, lr = 0.5)]
struct Contrastive {
    #[hparam(default = 100)]
    room: i64,
    #[layer(Room(room))]
    room_of: Room,
    #[layer(linear(4, 3))]
    head: Linear,
}

#[test]
fn a_loss_of_the_whole_batch_is_never_split() -> Result<()> {
    let said = message(train(&mut Contrastive::builder().room(6).build()?, 12, 1));
    assert!(said.contains("its loss depends on the batch as a whole"), "{said}");
    train(&mut Contrastive::builder().build()?, 12, 1)?;
    Ok(())
}

/// A model with integer targets. libtorch computes its loss, but refuses to compute the gradient of
/// the loss, with an error that names no tensor.
#[derive(LightningModule)]
#[loss(with = |output, target| {
    Ok(output.f_select(1, 0)?.f_mse_loss(target, amp_core::tch::Reduction::Mean)?)
})]
#[optimizer(sgd, lr = 0.5)]
struct OfIntegers {
    #[layer(linear(4, 3))]
    head: Linear,
}

/// A model whose class weights have a dtype that libtorch does not support.
#[derive(LightningModule)]
#[loss(with = |output, target| {
    let weights = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]);
    Ok(output.f_cross_entropy_loss(target, Some(weights), amp_core::tch::Reduction::Mean, -100, 0.0)?)
})]
#[optimizer(sgd, lr = 0.5)]
struct OfHalfWeights {
    #[layer(linear(4, 3))]
    head: Linear,
}

/// pytorch#45373 and apex#837: if libtorch refuses the dtypes of a loss, the error names the
/// dtypes.
#[test]
fn dtypes_that_libtorch_refuses_are_named() -> Result<()> {
    let said = message(train(&mut OfIntegers::builder().build()?, 12, 1));
    assert!(said.starts_with("the loss's backward pass: "), "{said}");
    assert!(said.contains("convert target and class weights to the output's dtype"), "{said}");
    let said = message(train(&mut OfHalfWeights::builder().build()?, 12, 1));
    let start = "loss: the output is float64 [12, 3] and the target int64 [12]: ";
    assert!(said.starts_with(start), "{said}");
    assert!(said.contains("convert target and class weights to the output's dtype"), "{said}");
    Ok(())
}

#[derive(Batch)]
struct Weighed {
    #[batch(ids)]
    place: Tensor,
    input: Tensor,
    #[batch(weights)]
    weights: Tensor,
    target: Tensor,
}

#[derive(LightningModule)]
#[batch(Weighed, inputs(input), target = batch)]
#[forward(|input| head(input))]
#[loss(with = |output, batch: &Weighed| {
    let errors = output.f_sub(&batch.target)?.f_square()?.f_mean_dim([1].as_slice(), false, Kind::Double)?;
    Ok(errors.f_mul(&batch.weights)?.f_sum(Kind::Double)?.f_div(&batch.weights.f_sum(Kind::Double)?)?)
}, of = examples)]
#[log(train_loss, on_step, on_epoch)]
#[optimizer(sgd, lr = 0.1)]
struct OfWeights {
    #[layer(linear(4, 3))]
    head: Linear,
}

/// The weights of examples count in the loss of a validation and of an epoch in the same way as in
/// the loss of a step. Invalid weights are refused.
#[test]
fn weights_of_examples_count_everywhere() -> Result<()> {
    let run = |weights: [f64; 8], batch: i64, window: i64| -> Result<(Vec<f64>, f64, f64)> {
        let _section = seeded(5);
        let mut net = OfWeights::builder().build()?;
        let rows = Tensor::f_randn([8, 4], (Kind::Float, Device::Cpu))?;
        let set = || -> Result<Weighed> {
            Ok(Weighed {
                place: Tensor::f_arange(8, (Kind::Int64, Device::Cpu))?,
                input: rows.copy(),
                weights: Tensor::from_slice(&weights),
                target: rows.f_narrow(1, 0, 3)?.f_square()?,
            })
        };
        let data = DataModule::new("weighed", set()?, set()?, batch).in_order();
        let record = Trainer::new(config(window)).fit(&mut net, &data)?;
        let moved = nn::parameters(&net).iter().flat_map(|own| values(&own.tensor)).collect();
        let value = |name: &str| record.epochs[0].value(name).expect("it is logged");
        Ok((moved, value("train_loss"), value("val_loss")))
    };
    let weights = [1.0, 0.0, 0.0, 5.0, 0.5, 2.0, 0.0, 0.0];
    let (expected, train, val) = run(weights, 8, 1)?;
    for (batch, window) in [(2, 4), (3, 3), (1, 8)] {
        let (seen, own_train, own_val) = run(weights, batch, window)?;
        for (seen, expected) in seen.iter().zip(&expected) {
            assert!((seen - expected).abs() < 1e-14, "found {seen}, expected {expected}");
        }
        assert!((own_train - train).abs() < 1e-12 && (own_val - val).abs() < 1e-12);
    }
    for bad in [f64::NAN, -3.0, f64::INFINITY] {
        let weights = [1.0, bad, 0.0, 5.0, 0.5, 2.0, 0.0, 1.0];
        let said = message(run(weights, 2, 4));
        assert!(said.contains("but weights must be finite and at least 0"), "{said}");
    }
    Ok(())
}
