//! Errors by layer: closed forms, every model, and a layer planted to lose more than the others.

use amp_core::{
    LightningModule, Result,
    data::Batch,
    precision::Precision,
    tch::{Device, Kind as Dtype, Tensor},
};
use amp_verify::{
    exponents::Losses,
    layers::{Flow, Growth, Kind, Options, Report, bias, growth, measure, rmse},
};
use fixtures::models;
use rstest::rstest;

use crate::{
    model::{Model, batch, fill, linear, mean, planted, subject},
    support::{amp, device, generator, text, torch_device},
};

/// 2^-12: half of f16's step above 1.
const HALF_STEP: f64 = 1.0 / 4096.0;

/// One Linear(1, 1) without bias, of this weight, on two rows of this input, its mean as loss.
fn single(weight: f64, input: f64, precision: Precision) -> Report {
    let build = || -> Result<Box<dyn LightningModule>> {
        let layer = linear(1, 1, false);
        fill(&layer, "weight", weight);
        Ok(Box::new(Model::new(layer, mean)))
    };
    let rows = Tensor::full([2, 1], input, (Dtype::Float, Device::Cpu));
    let batch = Batch::new(rows, Tensor::zeros([2], (Dtype::Int64, Device::Cpu))).expect("a batch");
    // At a scale of 65536 the weight's gradient overflows.
    let options = Options { log2_scale: 8, ..Options::new(precision) };
    measure(&subject(&build, &batch, &[]), options).expect("a report")
}

fn flow(report: &Report, at: usize, kind: Kind) -> &Flow {
    report.layers[at].flow(kind).expect("this kind of tensor")
}

/// 1 + 2^-12 rounds to 1 in f16 (to even) and is exact in f32.
#[test]
fn a_cast_inside_the_layer_is_its_own_error() {
    let _generator = generator();
    let report = single(1.0, 1.0 + HALF_STEP, Precision::F16Mixed);
    let forward = flow(&report, 0, Kind::Forward);
    assert_eq!((forward.error, forward.local_error), (Some(HALF_STEP), Some(HALF_STEP)));
    assert_eq!((forward.inherited_error, forward.local_share), (Some(0.0), Some(1.0)));
    assert_eq!((forward.baseline_error, forward.ratio), (Some(0.0), None));
    let bias = forward.bias.expect("finite errors");
    assert_eq!((bias.magnitude, bias.shift), (-HALF_STEP, -HALF_STEP));
    // The gradient of the weight is the mean of the inputs.
    let weight = flow(&report, 0, Kind::WeightGradient);
    assert_eq!((weight.error, weight.local_error), (Some(HALF_STEP), Some(HALF_STEP)));
    assert_eq!(report.layers[0].dtype, "float16");
}

#[test]
fn a_cast_before_the_layer_is_inherited() {
    let _generator = generator();
    let report = single(1.0, 1.0 + HALF_STEP, Precision::F16True);
    for kind in [Kind::Forward, Kind::WeightGradient] {
        let flow = flow(&report, 0, kind);
        assert_eq!((flow.error, flow.local_error), (Some(HALF_STEP), Some(0.0)), "{kind:?}");
        assert_eq!((flow.inherited_error, flow.local_share), (Some(HALF_STEP), Some(0.0)));
    }
}

/// The gradient that a second layer passes back is its weight, rounded, times what it is given.
#[test]
fn gradients_have_their_own_error() {
    let _generator = generator();
    let build = || -> Result<Box<dyn LightningModule>> {
        let layers = vec![linear(1, 1, false), linear(1, 1, false)];
        fill(&layers, "0.weight", 1.0);
        fill(&layers, "1.weight", 1.0 + HALF_STEP);
        Ok(Box::new(Model::new(layers, mean)))
    };
    let rows = Tensor::ones([4, 1], (Dtype::Float, Device::Cpu));
    let batch = Batch::new(rows, Tensor::zeros([4], (Dtype::Int64, Device::Cpu))).expect("a batch");
    let options = Options { log2_scale: 8, ..Options::new(Precision::F16Mixed) };
    let report = measure(&subject(&build, &batch, &[]), options).expect("a report");
    let second = flow(&report, 1, Kind::InputGradient);
    // Of each of four rows: a quarter of the mean.
    let expected = Some(HALF_STEP / 4.0);
    assert_eq!((second.error, second.local_error), (expected, expected));
    // Σ over four rows: the whole of it, none of it the first layer's own.
    let first = flow(&report, 0, Kind::WeightGradient);
    assert_eq!((first.error, first.local_error), (Some(HALF_STEP), Some(0.0)));
    assert_eq!(first.inherited_error, Some(HALF_STEP));
    assert!(report.layers[0].input_gradient.is_none(), "nothing asks for the data's gradient");
}

#[test]
fn bias_and_growth_have_closed_forms() {
    let exact = Tensor::from_slice(&[1.0, -2.0, 4.0, -8.0]);
    let shrunk = &exact * 0.75;
    let found = bias(&shrunk, &exact).expect("tensors of one shape").expect("finite");
    assert_eq!((found.magnitude, found.shift), (-15.0 / 16.0, 5.0 / 16.0));
    // Σe / √Σe²
    assert!((found.magnitude_z + 3.75 / 5.3125_f64.sqrt()).abs() < 1e-12);
    let even = &exact + Tensor::from_slice(&[0.5, -0.5, -0.5, 0.5]);
    let found = bias(&even, &exact).expect("tensors of one shape").expect("finite");
    assert_eq!((found.magnitude_z, found.shift_z, found.z()), (0.0, 0.0, 0.0));
    // One error for all of a 3 × 5 table: 1/√(1/3 + 1/5 − 1/15).
    let table = Tensor::ones([3, 5], (Dtype::Double, Device::Cpu));
    let found = bias(&(&table + 0.5), &table).expect("tensors of one shape").expect("finite");
    assert!((found.shift_z - (7.0_f64 / 15.0).sqrt().recip()).abs() < 1e-12);
    assert_eq!(rmse(&shrunk, &exact).expect("a number"), Some((85.0_f64 / 64.0).sqrt()));
    assert_eq!(growth(&[0.5, 1.0, 1.5, 2.0]), Some(Growth { per_layer: 0.5, t: None }));
    let found = growth(&[0.0, 1.0, 0.0]).expect("three points");
    assert_eq!((found.per_layer, found.t), (0.0, Some(0.0)));
    assert_eq!(growth(&[0.0, 1.0]), None);
}

/// What f32 says f16 will lose is what it loses: outputs 300 · x for x = 1, 3, …, 399.
#[test]
fn the_observed_step_loses_what_was_predicted() {
    let _generator = generator();
    let build = || -> Result<Box<dyn LightningModule>> {
        let layer = linear(1, 1, false);
        fill(&layer, "weight", 300.0);
        Ok(Box::new(Model::new(layer, mean)))
    };
    let rows = Tensor::arange_start_step(1, 401, 2, (Dtype::Float, Device::Cpu)).reshape([200, 1]);
    let target = Tensor::zeros([200], (Dtype::Int64, Device::Cpu));
    let batch = Batch::new(rows, target).expect("a batch");
    let options = Options::new(Precision::F16Mixed);
    let report = measure(&subject(&build, &batch, &[]), options).expect("a report");
    let forward = flow(&report, 0, Kind::Forward);
    // 300 · x ≥ 65520 from x = 218.4: 219, 221, …, 399.
    let expected = Losses { overflow: 91, underflow: 0 };
    assert_eq!((forward.predicted, forward.observed), (Some(expected), expected));
    assert_eq!((forward.error, report.loss), (None, None));
    assert!(report.layers[0].worst.contains(&Kind::Forward));
}

/// At a scale of 2^16 the gradient of the weight, the mean of the inputs, comes to 2^16: too much for
/// f16, which a product on CUDA is not rounded to.
#[test]
fn gradients_are_predicted_at_the_loss_scale() {
    let _generator = generator();
    let build = || -> Result<Box<dyn LightningModule>> {
        Ok(Box::new(Model::new(linear(1, 1, false), mean)))
    };
    let rows = Tensor::ones([2, 1], (Dtype::Float, Device::Cpu));
    let batch = Batch::new(rows, Tensor::zeros([2], (Dtype::Int64, Device::Cpu))).expect("a batch");
    for (log2_scale, overflow) in [(15, 0), (16, 1)] {
        let options = Options { log2_scale, ..Options::new(Precision::F16Mixed) };
        let report = measure(&subject(&build, &batch, &[]), options).expect("a report");
        let weight = flow(&report, 0, Kind::WeightGradient);
        let expected = Losses { overflow, underflow: 0 };
        assert_eq!(weight.predicted, Some(expected));
        let lost = if torch_device().is_cuda() { Losses::default() } else { expected };
        assert_eq!(weight.observed, lost);
        // 2^15 is the largest exponent; one bit is to be kept free.
        let layer = &report.layers[0];
        assert_eq!(layer.window.map(|window| window.high), Some(14));
        assert_eq!(layer.margin_bits, Some(14 - log2_scale));
    }
}

#[rstest]
#[case::f16_mixed(Precision::F16Mixed)]
#[case::bf16_true(Precision::Bf16True)]
fn every_model_is_measured(#[case] precision: Precision) {
    let _generator = generator();
    for model in models::ALL {
        let build = || {
            amp_core::hardware::seed_everything(1)?;
            model.build(&model.hyperparameters())
        };
        let batch = model.data.load(16).expect("the data").train.head(16).expect("a batch");
        let options = Options::new(precision);
        let report = measure(&subject(&build, &batch, &[]), options).expect(model.name);
        assert!(report.dropout || device() != "cpu", "{}: masks agree on the CPU", model.name);
        assert!(report.layers.len() >= 5, "{}: {} layers", model.name, report.layers.len());
        assert!(report.layers.iter().any(|layer| layer.weight_gradient.is_some()));
        for layer in &report.layers {
            for kind in Kind::ALL {
                let Some(flow) = layer.flow(kind) else { continue };
                let name = format!("{} {} {kind:?}", model.name, layer.path);
                let (Some(error), Some(rms)) = (flow.error, flow.rms) else {
                    panic!("{name} is not finite");
                };
                // Wherever bf16 and f16 lose a few digits; a wrong mask would lose them all.
                assert!(error <= 0.7 * rms || rms < 1e-9, "{name}: {error} of {rms}");
                assert!(flow.local_error.is_some() && flow.inherited_error.is_some(), "{name}");
            }
        }
        let with_input_gradient = report.layers.iter().filter(|l| l.input_gradient.is_some());
        assert!(with_input_gradient.count() + 2 >= report.layers.len(), "{}", model.name);
    }
}

/// 32-true against itself: every ratio is 1, to the last bit.
#[test]
fn the_baseline_loses_what_the_baseline_loses() {
    let _generator = generator();
    let build = || -> Result<Box<dyn LightningModule>> {
        amp_core::hardware::seed_everything(1)?;
        Ok(Box::new(planted(true)))
    };
    let batch = batch(32);
    let options = Options::new(Precision::F32True);
    let report = measure(&subject(&build, &batch, &[]), options).expect("a report");
    for layer in &report.layers {
        for flow in Kind::ALL.into_iter().filter_map(|kind| layer.flow(kind)) {
            assert!(flow.ratio.is_none_or(|ratio| ratio == 1.0), "{}", layer.path);
            assert_eq!((flow.observed, flow.predicted), (Losses::default(), None));
        }
    }
    assert_eq!(report.window, None);
}

#[test]
fn a_planted_layer_is_the_worst_and_an_island_heals_it() {
    let _generator = generator();
    let build = || -> Result<Box<dyn LightningModule>> {
        amp_core::hardware::seed_everything(1)?;
        Ok(Box::new(planted(true)))
    };
    let batch = batch(32);
    let options = Options::new(Precision::F16Mixed);
    let sick = measure(&subject(&build, &batch, &[]), options).expect("a report");
    let worst = sick.worst(Kind::Forward).expect("a worst layer");
    assert_eq!(worst.path, "model.4");
    let healed = measure(&subject(&build, &batch, &["model.4"]), options).expect("a report");
    let layer = healed.layers.iter().find(|layer| layer.path == "model.4").expect("the layer");
    assert_eq!(layer.dtype, "float32");
    // In a `*-true` run the island's parameters are f32 too.
    let options = Options::new(Precision::Bf16True);
    let raised = measure(&subject(&build, &batch, &["model.4"]), options).expect("a report");
    let dtypes: Vec<&str> = raised.layers[3..6].iter().map(|layer| layer.dtype.as_str()).collect();
    assert_eq!(dtypes, ["bfloat16", "float32", "bfloat16"]);
    let size = |report: &Report| flow(report, 4, Kind::Forward).relative_local_error();
    assert!(size(&healed) < 1e-5 && size(&sick) > 1e-2, "{} {}", size(&healed), size(&sick));
    assert!(sick.loss.is_some_and(f64::is_finite) || worst.forward.observed.overflow > 0);
    assert_eq!(torch_device() == Device::Cpu, device() == "cpu");
}

#[test]
fn the_command_prints_a_table_and_json_of_one_schema() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |format: &str| {
        let output = amp(folder.path())
            .args(["layers", "--model", "PrecisionTestModel", "--precision", "16-mixed"])
            .args(["--device", &device(), "--format", format])
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let table = run("table");
    for part in ["model.4", "E weight grad", "safe loss scales: 2^", "largest local error"] {
        assert!(table.contains(part), "`{part}` is not in {table}");
    }
    let report: Report = serde_json::from_str(&run("json")).expect("the schema's form");
    assert_eq!((report.schema.as_str(), report.layers.len()), ("amp-layers/1", 5));
    let histogram = &report.layers[0].forward.histogram;
    assert_eq!(histogram.nonzero() + histogram.zeros, 64 * 256);
}
