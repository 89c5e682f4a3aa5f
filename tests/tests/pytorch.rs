//! Tests that weights can be moved from PyTorch to the models of this repository and back. The
//! tensors have the same names in both.
//!
//! `fixtures/oracles/pytorch_copies.json` and the files next to it were recorded from copies of the
//! models in PyTorch. The tests of the other direction run PyTorch itself, which `cargo amp`
//! installs.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    process::Command,
};

use amp_core::{
    Hyperparameters, LightningModule, Step,
    data::{AnyBatch, FieldRole},
    hardware::{parse_device, set_numerics},
    log::Log,
    nn::{Context, named_tensors, place},
    precision::{Policy, Precision},
    random,
    tch::{Device, Kind, Tensor, no_grad},
    weights,
};
use fixtures::{registry, without_projects};
use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

/// Includes recorded files in the test binary, so that the binary needs no other files.
macro_rules! recorded {
    ($($name:literal),*) => {
        [$((
            $name,
            include_bytes!(concat!("../../fixtures/oracles/weights/", $name, ".safetensors"))
                .as_slice(),
        )),*]
    };
}

const WEIGHTS: [(&str, &[u8]); 13] = recorded![
    "MixedPrecisionDemo",
    "AdvancedAMPModel",
    "ManualAMPModel",
    "DebuggingAMPModel",
    "ProductionAMPModel",
    "PrecisionTestModel",
    "MemoryEfficientModel",
    "GradientAccumulationModel",
    "RobustAMPModel",
    "ProfilingAMPModel",
    "DigitsConvNet",
    "CharTransformer",
    "GPT2LMHeadModel"
];
const OUTPUTS: [(&str, &[u8]); 1] = recorded!["logits"];

/// The Python program that reads the weights, and the modules that this program imports.
const PYTHON: [(&str, &str); 4] = [
    ("read_weights.py", include_str!("../read_weights.py")),
    ("recorders/__init__.py", include_str!("../../fixtures/oracles/recorders/__init__.py")),
    ("recorders/copies.py", include_str!("../../fixtures/oracles/recorders/copies.py")),
    (
        "recorders/safetensors_file.py",
        include_str!("../../fixtures/oracles/recorders/safetensors_file.py"),
    ),
];

fn recorded(name: &str) -> Value {
    let all: Value =
        serde_json::from_str(include_str!("../../fixtures/oracles/pytorch_copies.json"))
            .expect("an oracle is JSON");
    all["models"][name].clone()
}

/// Builds the model with random weights and with the hyperparameters of its copy in PyTorch.
fn build(name: &str) -> Box<dyn LightningModule> {
    let hyperparameters: Hyperparameters =
        serde_json::from_value(recorded(name)["hyperparameters"].clone()).expect("an object");
    let registry = registry();
    let model = registry.find(Some(name)).expect("a model of this name");
    model.build(&hyperparameters).expect("a model")
}

/// Reads the tensors of a file with tch, because amp-core's reader is under test.
fn read(path: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path).expect("a safetensors file").into_iter().collect()
}

/// Returns a function that looks up a recorded tensor of the model `name`: `input`, or PyTorch's
/// output `f32` or `f64`.
fn outputs(name: &str) -> impl Fn(&str) -> Tensor {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("logits.safetensors");
    fs::write(&path, OUTPUTS[0].1).expect("the file can be written");
    let (name, tensors) = (name.to_owned(), read(&path));
    move |what| tensors[&format!("{name}.{what}")].shallow_clone()
}

fn device() -> Device {
    let name = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    parse_device(&name).expect("AMP_DEVICE names a device of this machine")
}

/// Returns the model's output for an input.
fn run(model: &mut dyn LightningModule, input: &Tensor, context: &Context) -> Tensor {
    let mut batch = AnyBatch::new("inputs");
    batch.push("input", input, FieldRole::Value).expect("a batch");
    let mut log = Log::default();
    let mut step = Step::new(context, &mut log, 0, 0);
    let output = no_grad(|| model.predict_step(&batch, &mut step)).expect("an output");
    output.required("output").expect("one tensor").shallow_clone()
}

/// Returns the model's logits in evaluation mode, on the CPU.
fn logits(model: &mut dyn LightningModule, policy: Policy, input: &Tensor) -> Tensor {
    let input = match input.kind() {
        Kind::Int64 => input.to_device(policy.device),
        _ => input.to_device(policy.device).to_kind(policy.precision.storage()),
    };
    run(model, &input, &Context::new(policy, false)).to_device(Device::Cpu)
}

/// Returns the largest difference between elements of the two tensors, in f64.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Returns the number by which differences are divided: the largest absolute value of a logit, but
/// at least 1.
fn size(logits: &Tensor) -> f64 {
    logits.abs().max().double_value(&[]).max(1.0)
}

#[test]
fn every_model_has_a_copy() {
    let names = WEIGHTS.map(|(name, _)| name);
    let registry = without_projects();
    assert_eq!(registry.models().map(|model| model.name()).collect::<Vec<_>>(), names);
}

/// A model that loads the weights of its copy in PyTorch computes the same logits as the copy. On
/// the CPU, the bounds are 1e-6 in f32 and 1e-12 in f64. On CUDA, sums in f32 are computed in
/// another order. The bound there is the larger of two numbers: eight times the distance between
/// PyTorch's f32 and f64 logits, and eight times the rounding error of the largest logit. TF32 is
/// off in this test, because it would cause differences that are a hundred times as large.
#[rstest]
fn pytorchs_weights_give_its_logits(
    #[values(Precision::F32True, Precision::F64True)] precision: Precision,
) {
    set_numerics(false, false).expect("TF32 can be switched off");
    let policy = Policy::new(precision, device());
    let folder = tempdir().expect("a temporary folder");
    for (name, bytes) in WEIGHTS {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("the file can be written");
        let mut model = build(name);
        place(model.as_ref(), policy, &Default::default()).expect("the device has room");
        weights::load(model.as_ref(), &path).expect("PyTorch's weights");
        let own = outputs(name);
        let found = logits(model.as_mut(), policy, &own("input"));
        assert_eq!(found.kind(), precision.storage(), "{name}");
        let exact = own("f64");
        let (expected, bound) = match (precision, policy.device) {
            (Precision::F64True, _) => (&exact, 1e-12 * size(&exact)),
            (_, Device::Cpu) => (&own("f32"), 1e-6 * size(&exact)),
            _ => {
                let error = distance(&own("f32"), &exact);
                let rounding = f64::from(f32::EPSILON) / 2.0 * size(&exact);
                (&exact, 8.0 * error.max(rounding))
            }
        };
        let distance = distance(&found, expected);
        assert!(distance <= bound, "{name}: logits differ by {distance:e}, bound {bound:e}");
    }
}

/// The tensors have the names and the order of PyTorch's `state_dict`.
#[test]
fn state_dicts_have_pytorchs_order() {
    for (name, _) in WEIGHTS {
        let own: Vec<String> =
            named_tensors(build(name).as_ref()).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(serde_json::json!(own), recorded(name)["state_dict"], "{name}");
    }
}

/// A file with the weights of another model is refused. A file with the same names and other shapes
/// is refused too.
#[test]
fn the_recorded_weights_belong_to_one_model() {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights");
    fs::write(&path, WEIGHTS[0].1).expect("the file can be written");
    let error = weights::load(build("ManualAMPModel").as_ref(), &path).expect_err("another's");
    assert!(error.to_string().contains("these are the weights of another model"), "{error}");
}

/// PyTorch loads the saved weights with `strict=True`, and computes the same logits with them. In
/// each precision, the weights have the names and dtypes of the `state_dict` of the copy in
/// PyTorch.
#[test]
fn pytorch_reads_our_weights() {
    let folder = tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("recorders")).expect("a folder");
    for (name, text) in PYTHON {
        fs::write(folder.path().join(name), text).expect("the file can be written");
    }
    let _section = random::seeded(7).expect("libtorch takes a seed");
    for (name, _) in WEIGHTS {
        let mut model = build(name);
        let input = outputs(name)("input");
        let cpu = |precision| Policy::new(precision, Device::Cpu);
        // After a training step the running statistics differ from their initial values.
        let training = Context::new(cpu(Precision::F32True), true);
        drop(run(model.as_mut(), &input, &training));
        for precision in
            [Precision::F32True, Precision::F64True, Precision::Bf16True, Precision::F16True]
        {
            let place =
                |model: &dyn LightningModule, policy| place(model, policy, &Default::default());
            place(model.as_ref(), cpu(precision)).expect("memory");
            let found = logits(model.as_mut(), cpu(precision), &input);
            let file = |what| folder.path().join(format!("{name}.{precision}.{what}"));
            let own = [("input", &input), ("logits", &found)];
            Tensor::write_safetensors(&own, file("io")).expect("the file can be written");
            place(model.as_ref(), Policy::new(precision, device())).expect("the device has room");
            weights::save(model.as_ref(), &file("weights"), BTreeMap::new())
                .expect("weights are saved");
        }
    }
    // `cargo amp test` sets `AMP_TEST_PYTHON` to a folder in which it has installed torch. Without
    // this variable, the torch that Python itself finds is used.
    let site = std::env::var("AMP_TEST_PYTHON").unwrap_or_default();
    let out = Command::new("python3")
        .args(["-B", "read_weights.py", "."])
        .current_dir(folder.path())
        .env("PYTHONPATH", site)
        .output()
        .expect("python3 can be run");
    assert!(
        out.status.success(),
        "python3 has no torch 2.11, or PyTorch does not agree with the weights:\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
