//! Tests that models with weights from files of transformers and torchvision give the same logits
//! as in Python.

mod bert;
mod gpt2;
mod resnet;
mod steps;

use std::fs;

use amp_core::tch::{Kind, Tensor};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::support::{
    bits::from_bits,
    oracle::{Lcg, oracle, text},
};

const ROWS: i64 = 3;
const LENGTH: i64 = 8;

/// Returns the input and output of Python's model `name`.
fn case(name: &str) -> Value {
    oracle!("pretrained.json")["cases"][name].clone()
}

/// Embeds into the test binary the files that Python has written, so that the tests read no files of
/// the repository at run time.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../fixtures/oracles/pretrained/",
            $name
        )).as_slice())),*]
    };
}

static FILES: [(&str, &[u8]); 5] = files![
    "bert/model.safetensors",
    "gpt2/model-00001-of-00003.safetensors",
    "gpt2/model-00002-of-00003.safetensors",
    "gpt2/model-00003-of-00003.safetensors",
    "gpt2/model.safetensors.index.json",
];

/// Creates a folder with the files of Python's model `name`.
fn folder(name: &str) -> TempDir {
    let folder = tempdir().expect("a folder");
    for (path, bytes) in FILES {
        if let Some(file) = path.strip_prefix(name).and_then(|path| path.strip_prefix('/')) {
            fs::write(folder.path().join(file), bytes).expect("a file");
        }
    }
    folder
}

/// Returns random token ids below 40.
fn ids(seed: u64) -> Tensor {
    let mut generator = Lcg(seed);
    let ids: Vec<i64> =
        (0..ROWS * LENGTH).map(|_| i64::try_from(generator.next() % 40).expect("small")).collect();
    Tensor::from_slice(&ids).view([ROWS, LENGTH])
}

/// Asserts that the logits equal Python's, up to the rounding of f64.
fn assert_logits(found: &Tensor, name: &str) {
    let expected = from_bits(Kind::Double, text(&case(name), "logits")).view_as(found);
    let error = (found - &expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]);
    assert!(error <= 1e-12 * size.max(1.0), "{name}: error {error:e}, largest logit {size}");
}
