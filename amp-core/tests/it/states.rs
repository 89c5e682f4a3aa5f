//! Tests of the values in a checkpoint: every float and every dtype is saved exactly, or refused
//! before training.

use std::{collections::BTreeMap, fs};

use amp_core::{
    Trainer, TrainerConfig,
    callback::{EarlyStopping, Mode, ModelCheckpoint},
    data::Limit,
    nn::named_tensors,
    prelude::*,
    state::State,
    weights,
};
use rstest::rstest;
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::{message, seeded};

/// A model whose state consists of floats that begin as infinity, NaN and negative infinity.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Best {
    #[layer(linear(2, 1))]
    head: Linear,
    #[state(f64::INFINITY)]
    best: f64,
    #[state(f64::NAN)]
    last: f64,
    #[state(f32::NEG_INFINITY)]
    highest: f32,
}

/// A model whose state contains a list with an infinite number.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Scores {
    #[layer(linear(2, 1))]
    head: Linear,
    #[state(vec![0.0, f64::INFINITY])]
    scores: Vec<f64>,
}

/// A model with tensors of every dtype that safetensors supports.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Kinds {
    #[layer(linear(2, 1))]
    head: Linear,
    #[buffer(init = Tensor::from_slice(&[true, false]))]
    flags: Tensor,
    #[buffer(init = Tensor::from_slice(&[-3_i8, 127]))]
    bytes: Tensor,
    #[buffer(init = Tensor::from_slice(&[-300_i16, 32767]))]
    shorts: Tensor,
    #[buffer(init = Tensor::from_slice(&[1_u8, 255]))]
    octets: Tensor,
    #[buffer(init = Tensor::from_slice(&[1_i32 << 30, -1]))]
    words: Tensor,
    #[buffer(init = Tensor::from_slice(&[1_i64 << 40, -1]))]
    longs: Tensor,
}

/// A model with a complex tensor, which cannot be saved.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Complex {
    #[layer(linear(2, 1))]
    head: Linear,
    #[buffer(init = Tensor::from_slice(&[1.0_f32]).to_kind(Kind::ComplexFloat))]
    phase: Tensor,
}

fn data() -> Result<DataModule> {
    let ones = |width| Tensor::f_ones([8, width], (Kind::Float, Device::Cpu));
    let batch = || Batch::new(ones(2)?, ones(1)?);
    Ok(DataModule::new("ones", batch()?, batch()?, 4))
}

fn config(epochs: i64) -> TrainerConfig {
    TrainerConfig { max_epochs: epochs, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
}

/// serde-rs/json#202: every float is restored, although JSON writes a NaN or infinity as null.
#[test]
fn every_float_is_restored() -> Result<()> {
    let _section = seeded(0);
    let folder = tempdir().expect("a temporary folder");
    let last = folder.path().join("last.safetensors");
    let saves = || -> Result<ModelCheckpoint> {
        Ok(ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true))
    };
    let mut first = Best::builder().build()?;
    Trainer::new(config(1)).callback(saves()?).fit(&mut first, &data()?)?;
    let mut rest = Best::builder().build()?;
    (rest.best, rest.last, rest.highest) = (0.0, 0.0, 0.0);
    Trainer::new(config(2)).callback(saves()?).resume_from(last).fit(&mut rest, &data()?)?;
    assert_eq!(rest.best, f64::INFINITY);
    assert!(rest.last.is_nan());
    assert_eq!(rest.highest, f32::NEG_INFINITY);
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
struct Nested {
    of: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Choice {
    One(f64),
    Two { of: (f32, f64) },
}

/// A NaN or an infinity inside a list, a struct, a map or an `Option` would be written to JSON as
/// null, so saving such a value is refused. A value that is itself a float can be saved, even if it
/// is not finite.
#[test]
fn a_float_within_another_value_is_refused() -> Result<()> {
    let mut state = State::default();
    let inf = f64::INFINITY;
    let refused = [
        message(state.put("x", &vec![1.0, f64::NAN])),
        message(state.put("x", &Some(inf))),
        message(state.put("x", &(1, inf))),
        message(state.put("x", &Nested { of: Some(inf) })),
        message(state.put("x", &Choice::One(inf))),
        message(state.put("x", &Choice::Two { of: (f32::NAN, 1.0) })),
        message(state.put("x", &BTreeMap::from([("key", -inf)]))),
    ];
    for said in refused {
        assert!(said.contains("state `x`: ") && said.contains("cannot be saved"), "{said}");
    }
    state.put("fine", &Nested { of: Some(1e300) })?;
    state.put("none", &None::<f64>)?;
    state.put("text", &"inf")?;
    assert_eq!(state.get::<Nested>("fine")?.of, Some(1e300));
    assert_eq!(state.get::<Option<f64>>("none")?, None);
    assert_eq!(state.get::<String>("text")?, "inf");
    for float in [1.5, -0.0, f64::MIN_POSITIVE, f64::MAX, inf, -inf] {
        state.put("float", &float)?;
        assert_eq!(state.get::<f64>("float")?.to_bits(), float.to_bits());
    }
    Ok(())
}

#[test]
fn state_that_cannot_be_saved_is_refused_before_training() -> Result<()> {
    let mut steps = 0;
    let mut count = |_: &amp_core::event::Event| -> Result<()> {
        steps += 1;
        Ok(())
    };
    let mut scores = Scores::builder().build()?;
    let said = message(Trainer::new(config(1)).subscribe(&mut count).fit(&mut scores, &data()?));
    assert!(said.contains("`scores`: inf cannot be saved as part of a larger value"), "{said}");
    let mut complex = Complex::builder().build()?;
    let said = message(Trainer::new(config(1)).subscribe(&mut count).fit(&mut complex, &data()?));
    assert!(said.contains("`phase`") && said.contains("cannot be saved"), "{said}");
    assert_eq!(steps, 0);
    Ok(())
}

/// Automodel#2533 and mlx#743: tensors of every dtype are saved.
#[test]
fn tensors_of_every_dtype_are_saved() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let kinds = {
        let _section = seeded(1);
        Kinds::builder().build()?
    };
    weights::save(&kinds, &path, BTreeMap::new())?;
    let others = {
        let _section = seeded(2);
        Kinds::builder().build()?
    };
    for (_, mut tensor, _) in named_tensors(&others) {
        amp_core::tch::no_grad(|| tensor.f_zero_().map(drop))?;
    }
    let text = weights::load(&others, &path)?;
    assert_eq!(text.get("format").map(String::as_str), Some("pt"));
    for ((name, one, _), (_, other, _)) in
        named_tensors(&kinds).into_iter().zip(named_tensors(&others))
    {
        assert!(one.kind() == other.kind() && one.equal(&other), "`{name}`");
    }
    // tch's reader of safetensors files returns the same dtypes.
    for (name, tensor) in Tensor::read_safetensors(&path)? {
        let own = named_tensors(&kinds).into_iter().find(|(own, ..)| *own == name);
        assert_eq!(own.map(|(_, own, _)| own.kind()), Some(tensor.kind()), "{name}");
    }
    Ok(())
}

/// The metadata of a checkpoint declare the file as one of PyTorch (`format` is `pt`), so other
/// programs can read the weights from it.
#[test]
fn the_weights_of_a_checkpoint_are_in_pytorchs_format() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let _section = seeded(0);
    let mut model = Kinds::builder().build()?;
    let saves = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?.save_last(true);
    Trainer::new(config(1)).callback(saves).fit(&mut model, &data()?)?;
    let bytes = fs::read(folder.path().join("last.safetensors")).expect("the file");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let text = header.metadata().clone().expect("texts");
    assert_eq!(text["format"], "pt");
    assert_eq!(text["amp-format"], "amp-checkpoint-1");
    Ok(())
}

/// Lightning#4468: the file name of a checkpoint is valid for every name of the monitored value.
/// Special characters in this name are percent-encoded, so different names give different file
/// names.
#[rstest]
#[case("val/loss", "val%2Floss")]
#[case("val_loss", "val_loss")]
#[case("..", "..")]
#[case("a=b c%", "a%3Db%20c%25")]
#[case("größe", "gr%C3%B6%C3%9Fe")]
fn a_monitored_name_makes_a_file_name(#[case] name: &str, #[case] part: &str) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let _section = seeded(0);
    let mut model = Named { head: linear()?, name: name.to_owned(), value: 1e300 };
    let saves = ModelCheckpoint::new(folder.path(), name, Mode::Min)?;
    Trainer::new(config(1)).callback(saves).fit(&mut model, &data()?)?;
    let names: Vec<String> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, [format!("epoch=00-{part}=1.0000e300.safetensors")]);
    Ok(())
}

#[test]
fn a_name_too_long_for_a_file_is_refused_before_training() {
    let folder = tempdir().expect("a temporary folder");
    for name in [String::new(), "x".repeat(151), "/".repeat(51)] {
        let said = message(ModelCheckpoint::new(folder.path(), name, Mode::Min));
        assert!(said.contains("but must take 1 to 150"), "{said}");
    }
}

fn linear() -> Result<Linear> {
    Linear::new(amp_core::nn::LinearConfig::new(2, 1))
}

/// A model that logs a value under the given name.
struct Named {
    head: Linear,
    name: String,
    value: f64,
}

impl amp_core::nn::Visit for Named {
    fn visit(&self, visitor: &mut dyn amp_core::nn::Visitor) {
        amp_core::nn::visit_child(visitor, "head", None, &self.head);
    }
}

impl LightningModule for Named {
    fn name(&self) -> &'static str {
        "Named"
    }

    fn hyperparameters(&self) -> amp_core::Hyperparameters {
        amp_core::Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let batch = Batch::from_any(batch)?;
        loss::mse_loss(&self.head.forward(&batch.input, step.context())?, &batch.target)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        step.log(&self.name, &Tensor::from(self.value), batch.len(), LogOptions::ON_EPOCH)
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        Ok(OptimizerConfig::new(amp_core::optim::Sgd { lr: 0.1, ..Default::default() }).into())
    }
}

/// `ModelCheckpoint` never saves a NaN as the best value, and `EarlyStopping` stops the run if the
/// monitored value is NaN.
#[test]
fn a_monitored_nan_is_never_the_best_and_stops_the_run() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let _section = seeded(0);
    let mut model = Named { head: linear()?, name: "val".to_owned(), value: f64::NAN };
    let saves = ModelCheckpoint::new(folder.path(), "val", Mode::Max)?;
    let stops = EarlyStopping::new("val", Mode::Max);
    let record =
        Trainer::new(config(5)).callback(saves).callback(stops).fit(&mut model, &data()?)?;
    assert_eq!(record.epochs.len(), 1);
    assert_eq!(record.notes, ["stopped early: val is NaN"]);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
    assert_eq!(record.not_finite()[0].name, "val");
    Ok(())
}

/// Two callbacks with the same name are refused, because a checkpoint could contain the state of
/// only one of them.
#[test]
fn two_callbacks_of_one_name_are_refused() -> Result<()> {
    let _section = seeded(0);
    let (one, other) = (tempdir().expect("a folder"), tempdir().expect("a folder"));
    let saves =
        |folder: &tempfile::TempDir| ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min);
    let mut model = Best::builder().build()?;
    let mut trainer = Trainer::new(config(1)).callback(saves(&one)?).callback(saves(&other)?);
    let said = message(trainer.fit(&mut model, &data()?));
    assert!(said.contains("two callbacks are called `ModelCheckpoint/val_loss`"), "{said}");
    Ok(())
}

/// Options with the largest possible numbers do not overflow: `max_epochs` and
/// `accumulate_grad_batches` are `i64::MAX`.
#[test]
fn the_largest_numbers_do_not_overflow() -> Result<()> {
    let _section = seeded(0);
    let mut model = Best::builder().build()?;
    let config = config(i64::MAX).with(|config| {
        config.max_steps = Some(3);
        config.optimization.accumulate_grad_batches = i64::MAX;
    });
    let record = Trainer::new(config).fit(&mut model, &data()?)?;
    assert_eq!(record.end.global_step, 3);
    Ok(())
}

/// Early stopping refuses a `min_delta` that is negative or NaN. With a negative one, a worse value
/// would count as an improvement.
#[rstest]
#[case(-0.1)]
#[case(f64::NAN)]
fn a_negative_difference_is_refused(#[case] delta: f64) -> Result<()> {
    let _section = seeded(0);
    let mut model = Best::builder().build()?;
    let stops = EarlyStopping::new("val_loss", Mode::Min).min_delta(delta);
    let said = message(Trainer::new(config(1)).callback(stops).fit(&mut model, &data()?));
    assert!(said.contains("min_delta is") && said.contains("at least 0"), "{said}");
    Ok(())
}

/// If `limit_val_batches` is a fraction that leaves no batch, the run is refused. Only a fraction
/// of 0 switches validation off.
#[test]
fn a_fraction_that_leaves_nothing_is_refused() -> Result<()> {
    let _section = seeded(0);
    let mut model = Best::builder().build()?;
    let mut fit = |limit| {
        let config = config(1).with(|config| config.loops.limit_val_batches = limit);
        Trainer::new(config).fit(&mut model, &data()?)
    };
    let said = message(fit(Limit::Fraction(0.3)));
    assert!(said.contains("the limit 0.3 leaves none of the 2 batches to evaluate"), "{said}");
    assert!(fit(Limit::Fraction(0.5)).is_ok());
    assert_eq!(fit(Limit::Fraction(0.0))?.epochs[0].val, []);
    Ok(())
}
