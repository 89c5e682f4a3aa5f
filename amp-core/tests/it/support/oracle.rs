//! Helpers that read the results recorded from PyTorch. The files are compiled into the test
//! binary, so that it needs no other files.

use amp_core::tch::{Kind, Tensor};
use serde_json::Value;

/// Parses a JSON file of `fixtures/oracles` (results recorded from PyTorch).
macro_rules! oracle {
    ($name:literal) => {
        serde_json::from_str::<serde_json::Value>(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../fixtures/oracles/",
            $name
        )))
        .expect("an oracle is JSON")
    };
}
pub(crate) use oracle;

/// Returns the text in the field `key`.
#[track_caller]
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is a text"))
}

/// Returns a number that the recording stores as Python's `repr`.
#[track_caller]
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    parsed(&value[key])
}

/// Parses a number that the recording stores as Python's `repr`.
#[track_caller]
pub(crate) fn parsed(value: &Value) -> f64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is not a number in a text"));
    text.parse().unwrap_or_else(|_| panic!("{text} is a number"))
}

/// Returns the integer in the field `key`.
#[track_caller]
pub(crate) fn integer(value: &Value, key: &str) -> i64 {
    value[key].as_i64().unwrap_or_else(|| panic!("`{key}` is an integer"))
}

/// Returns the list in the field `key`.
#[track_caller]
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("`{key}` is a list"))
}

/// Returns the shapes of the recording's tensors.
pub(crate) fn shapes(value: &Value) -> Vec<Vec<i64>> {
    serde_json::from_value(value["shapes"].clone()).expect("lists of sizes")
}

/// Knuth's MMIX generator, which computes the inputs of the recordings.
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Returns a row-major tensor of ((n mod 257) − 128) / denominator, where n is the next number
    /// of the generator. These values are exact in f32.
    pub(crate) fn tensor(&mut self, shape: &[i64], denominator: f32) -> Tensor {
        let count: i64 = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|_| ((self.next() % 257) as f32 - 128.0) / denominator).collect();
        Tensor::from_slice(&values).reshape(shape).to_kind(Kind::Float)
    }
}

/// The generator returns the numbers that `fixtures/oracles/README.md` lists for checking it.
#[test]
fn the_generator_is_the_oracles() {
    let mut zero = Lcg(0);
    assert_eq!([zero.next(), zero.next(), zero.next()], [167951807, 218396424, 1299921937]);
    let seven = Vec::<f32>::try_from(Lcg(7).tensor(&[6], 1.0)).expect("six numbers");
    assert_eq!(seven, [45.0, -117.0, -101.0, 125.0, -89.0, 97.0]);
}
