//! Tests of the layer: closed forms, and a model that is trained, saved and loaded.

use std::{collections::BTreeMap, fs};

use amp_core::{nn::named_tensors, precision::Policy, prelude::*, random, tch::no_grad, weights};
use own_layer::Gain;

/// Runs `build` in a section of `random::seeded`. The random numbers of `build` therefore depend
/// only on the seed, and not on other tests.
fn seeded<T>(seed: u64, build: impl FnOnce() -> Result<T>) -> T {
    let _section = random::seeded(seed).expect("a seed");
    build().expect("what can be built")
}

fn gain(features: i64) -> Gain {
    seeded(1, || Gain::new(features))
}

/// Returns a handle to the layer's weight.
fn weight(module: &impl Module) -> Tensor {
    let mut found = named_tensors(module).into_iter().filter(|(name, ..)| name.ends_with("weight"));
    found.next().expect("a weight").1
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_kind(Kind::Double).reshape([-1]);
    Vec::try_from(flat).expect("numbers")
}

/// Returns a tensor `[rows, columns]` of the values sin(pace · i), where i = 0, 1, … counts the
/// elements.
fn wave(rows: i64, columns: i64, pace: f64) -> Tensor {
    let numbers = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
    (numbers * pace).sin().view([rows, columns])
}

fn context(precision: Precision) -> Context {
    Context::new(Policy::new(precision, Device::Cpu), true)
}

#[test]
fn one_seed_gives_one_set_of_weights() {
    let drawn = |seed| numbers(&weight(&seeded(seed, || Gain::new(10_000))));
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    // The mean of 10,000 random weights has a standard deviation of 0.001.
    let mean = drawn(1).iter().sum::<f64>() / 10_000.0;
    assert!((mean - 1.0).abs() < 0.005, "{mean}");
}

/// For the mean squared error L over N examples of F features, dL/dw = 2/(N·F)·Σ (w·x − t)·x, where
/// t is the target. The test computes this formula in f64.
#[test]
fn output_and_gradient_follow_the_formula() {
    let (gain, input, target) = (gain(3), wave(5, 3, 0.7), wave(5, 3, 1.3));
    let output = gain.forward(&input, &context(Precision::F32True)).expect("an output");
    loss::mse_loss(&output, &target).expect("a loss").backward();
    let (w, gradient) = (numbers(&weight(&gain)), numbers(&weight(&gain).grad()));
    let (x, t, y) = (numbers(&input), numbers(&target), numbers(&output));
    let mut expected = [0.0; 3];
    for at in 0..15 {
        let (feature, product) = (at % 3, w[at % 3] * x[at]);
        assert!((y[at] - product).abs() < 1e-6, "{} is not {product}", y[at]);
        expected[feature] += 2.0 / 15.0 * (product - t[at]) * x[at];
    }
    for (found, expected) in gradient.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
}

#[test]
fn an_input_of_another_shape_is_refused() {
    let refused = |shape: &[i64]| {
        let input = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        gain(3)
            .forward(&input, &context(Precision::F32True))
            .expect_err("another shape")
            .to_string()
    };
    assert!(refused(&[5, 1]).contains("[3] features: the input has shape [5, 1]"));
    assert!(refused(&[3, 4]).contains("[3, 4]"));
    let none = Gain::new(0).expect_err("no features").to_string();
    assert_eq!(none, "gain(0): the size must be positive");
}

/// The model y = w·x. Its targets are known multiples of x.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.5)]
struct Calibration {
    #[layer(Gain::new(3)?)]
    scale: Gain,
}

fn data(multiples: &Tensor) -> DataModule {
    let part = |rows, pace| {
        let input = wave(rows, 3, pace);
        let target = &input * multiples;
        Batch::new(input, target).expect("a batch")
    };
    DataModule::new("multiples", part(64, 0.7), part(16, 1.3), 16)
}

#[test]
fn training_finds_the_weights_that_made_the_data() {
    let multiples = [2.0, -1.0, 0.5];
    let mut model = seeded(1, || Calibration::builder().build());
    let mut config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    config.max_epochs = 40;
    let data = data(&Tensor::from_slice(&multiples).to_kind(Kind::Float));
    Trainer::new(config).fit(&mut model, &data).expect("a run");
    for (found, expected) in numbers(&weight(&model)).iter().zip(multiples) {
        assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
    }
}

/// The header of the file is JSON that contains the names of the tensors. The test reads the header
/// without amp-core.
#[test]
fn the_weight_is_saved_and_loaded_under_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let saved = seeded(1, || Calibration::builder().build());
    weights::save(&saved, &path, BTreeMap::new()).expect("a file");

    let bytes = fs::read(&path).expect("the file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + length as usize]).expect("a header");
    assert_eq!(header["scale.weight"]["shape"], serde_json::json!([3]));
    assert_eq!(header["scale.weight"]["dtype"], "F32");

    let loaded = seeded(2, || Calibration::builder().build());
    assert_ne!(numbers(&weight(&loaded)), numbers(&weight(&saved)));
    weights::load(&loaded, &path).expect("the same model");
    assert_eq!(numbers(&weight(&loaded)), numbers(&weight(&saved)));
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(3, 3))]
    first: Linear,
    #[layer(Gain::new(3)?)]
    plain: Gain,
    #[layer(Gain::new(3)?)]
    #[precision(fp32)]
    exact: Gain,
    #[layer(linear(3, 3))]
    last: Linear,
}

/// Trains a model with two `Gain` layers, the second with `#[precision(fp32)]`. Returns the dtypes
/// of their weights after the run.
fn trained_kinds(precision: Precision) -> [Kind; 2] {
    let mut model = seeded(1, || Net::builder().build());
    let mut config = TrainerConfig::new(precision, Device::Cpu);
    config.max_epochs = 1;
    let data = data(&Tensor::ones([3], (Kind::Float, Device::Cpu)));
    Trainer::new(config).fit(&mut model, &data).expect("a run");
    [weight(&model.plain).kind(), weight(&model.exact).kind()]
}

/// Under a `*-true` precision, the weight is stored in the dtype of the precision, unless the layer
/// is in a precision region. Under mixed precision, the weight is stored in f32.
#[test]
fn the_weight_has_the_precisions_dtype() {
    assert_eq!(trained_kinds(Precision::Bf16True), [Kind::BFloat16, Kind::Float]);
    assert_eq!(trained_kinds(Precision::F64True), [Kind::Double, Kind::Double]);
    assert_eq!(trained_kinds(Precision::Bf16Mixed), [Kind::Float, Kind::Float]);
}

/// Under autocast, the product of a bf16 input and the f32 weight is f32. The README explains why.
#[test]
fn under_autocast_the_output_is_f32() {
    let input = wave(4, 3, 0.7).to_kind(Kind::BFloat16);
    let context = context(Precision::Bf16Mixed);
    let gain = gain(3);
    let _autocast = context.policy().autocast().expect("autocast");
    let output = no_grad(|| gain.forward(&input, &context)).expect("an output");
    assert_eq!(output.kind(), Kind::Float);
}

/// The code in the README equals the crate's code.
#[test]
fn the_page_shows_the_code() {
    let (page, code) = (include_str!("../README.md"), include_str!("../src/lib.rs"));
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(code.contains(block.expect("a block of Rust")), "src/lib.rs has other code");
}
