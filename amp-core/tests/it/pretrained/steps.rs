//! Tests of the steps of an import: which mistakes each step refuses, and which dtypes a file may
//! have.

use std::path::{Path, PathBuf};

use amp_core::{
    Result,
    nn::{Role, Visit, Visitor},
    tch::{Device, Kind, Tensor},
    weights::{Import, load, save_tensors},
};
use rstest::rstest;
use tempfile::{TempDir, tempdir};

use crate::support::{
    message,
    oracle::{oracle, parsed, text},
};

/// A model that consists of named tensors.
struct Tensors(Vec<(&'static str, Tensor)>);

impl Visit for Tensors {
    fn visit(&self, visitor: &mut dyn Visitor) {
        for (name, tensor) in &self.0 {
            visitor.tensor(name, tensor, Role::Buffer);
        }
    }
}

fn file(tensors: &[(&str, Tensor)]) -> (TempDir, PathBuf) {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let named = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor));
    save_tensors(named, &path, Default::default()).expect("the file is written");
    (folder, path)
}

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

fn open(path: &Path) -> Import {
    Import::open(path).expect("a file")
}

/// If an import is invalid, the error says which step or tensor is wrong, and the model does not
/// change.
#[rstest]
#[case::rename(|i: Import| i.rename("c.*", "b.*"), "rename(`c.*`, `b.*`): no tensor of the file matches `c.*`. The tensors are called `a.q`, `a.w`")]
#[case::renamed_before(|i: Import| i.rename("a.*", "b.*").rename("a.*", "b.*"), "tensors are called `b.q`, `b.w`")]
#[case::stars(|i: Import| i.rename("a.*", "b"), "both names need the same number of `*`")]
#[case::twice(|i: Import| i.rename("a.q", "b").rename("a.w", "b"), "`a.q` and `a.w` both get the name `b`")]
#[case::transpose(|i: Import| i.transpose("a.w"), "transpose(`a.w`): `a.w` is not a matrix, but has the shape [3]")]
#[case::stack(|i: Import| i.stack(&["a.q", "a.k"], "b"), "stack(…, `b`): there is no `a.k` to stack with `a.q`")]
#[case::stack_shapes(|i: Import| i.stack(&["a.q", "a.w"], "b"), "stack(…, `b`): `a.q` and its other parts have shapes [[2, 3], [3]], which cannot be stacked")]
#[case::ignore(|i: Import| i.ignore("head.*"), "ignore(`head.*`): no tensor of the file matches")]
#[case::keep(|i: Import| i.keep("head.*"), "keep(`head.*`): no tensor of the model matches. Its tensors are called `a.q`, `b`")]
#[case::left_over(|i: Import| i.keep("b"), "the model has no tensor `a.w`; `rename` gives")]
#[case::missing(|i: Import| i.ignore("a.w"), "the file has no tensor `b`; `rename` gives")]
fn invalid_steps_are_refused(#[case] steps: fn(Import) -> Import, #[case] says: &str) {
    let (_folder, path) = file(&[("a.q", ones(&[2, 3])), ("a.w", ones(&[3]))]);
    let zeros = |shape: &[i64]| ones(shape) * 0.0;
    let model = Tensors(vec![("a.q", zeros(&[2, 3])), ("b", zeros(&[3]))]);
    let said = message(steps(open(&path)).load_into(&model));
    assert!(said.contains(says), "{said}");
    assert!(!said.contains('\n'), "{said}");
    for (name, tensor) in &model.0 {
        assert_eq!(tensor.sum(Kind::Double).double_value(&[]), 0.0, "{name}");
    }
}

/// A step refers to tensors by the names that the previous steps have produced. `stack`
/// concatenates tensors in the order of its patterns, and not in their order in the file.
#[test]
fn steps_run_in_their_order() -> Result<()> {
    let of = |value: f64| ones(&[1, 2]) * value;
    let (_folder, path) = file(&[
        ("m.0.k", of(2.0)),
        ("m.0.q", of(1.0)),
        ("m.0.v", of(3.0)),
        ("m.1.k", of(5.0)),
        ("m.1.q", of(4.0)),
        ("m.1.v", of(6.0)),
        ("m.extra", of(9.0)),
    ]);
    let model = Tensors(vec![("0.in", ones(&[3, 2])), ("1.in", ones(&[2, 3]))]);
    let report = open(&path)
        .rename("m.*", "*")
        .ignore("extra")
        .stack(&["*.q", "*.k", "*.v"], "*.in")
        .transpose("1.in")
        .load_into(&model)?;
    let values = |place: usize| Vec::<f32>::try_from(model.0[place].1.flatten(0, -1)).expect("f32");
    assert_eq!(values(0), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    assert_eq!(values(1), [4.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
    assert_eq!(report.ignored, ["m.extra"]);
    Ok(())
}

/// Tensors of every dtype of a file, including 8-bit floats, are loaded into the same or a wider
/// dtype without a change of their values.
#[rstest]
#[case(Kind::Bool, Kind::Bool)]
#[case(Kind::Uint8, Kind::Uint8)]
#[case(Kind::Int8, Kind::Int8)]
#[case(Kind::Int16, Kind::Int)]
#[case(Kind::Int, Kind::Int64)]
#[case(Kind::Int64, Kind::Int64)]
#[case(Kind::Half, Kind::Float)]
#[case(Kind::BFloat16, Kind::Float)]
#[case(Kind::Float, Kind::Double)]
#[case(Kind::Double, Kind::Double)]
#[case(Kind::Float8e4m3fn, Kind::Float)]
#[case(Kind::Float8e5m2, Kind::BFloat16)]
#[case(Kind::Float8e4m3fnuz, Kind::Float)]
#[case(Kind::Float8e5m2fnuz, Kind::Half)]
fn every_dtype_is_read(#[case] there: Kind, #[case] here: Kind) -> Result<()> {
    let values = Tensor::from_slice(&[0.0_f32, 1.0, 3.0, 96.0]);
    let (_folder, path) = file(&[("x", values.to_kind(there))]);
    let model = Tensors(vec![("x", Tensor::zeros([4], (here, Device::Cpu)))]);
    open(&path).load_into(&model)?;
    let expected = values.to_kind(there).to_kind(Kind::Double);
    assert!(model.0[0].1.to_kind(Kind::Double).equal(&expected));
    let again = Tensors(vec![("x", Tensor::zeros([4], (here, Device::Cpu)))]);
    load(&again, &path)?;
    assert!(again.0[0].1.equal(&model.0[0].1));
    Ok(())
}

/// Every dtype of torch, as written by the safetensors package (fixtures/oracles/dtypes.json), is
/// read into int64 or float64 with equal values.
#[test]
fn dtypes_of_other_programs_are_read() -> Result<()> {
    let all = oracle!("dtypes.json");
    let (folder, path) = (tempdir().expect("a folder"), "model.safetensors");
    let path = folder.path().join(path);
    std::fs::write(&path, crate::transforms::bytes(text(&all, "file"))).expect("room on the disk");
    let recorded = all["values"].as_object().expect("values");
    assert_eq!(recorded.len(), 18);
    for (name, values) in recorded {
        let values = values.as_array().expect("values");
        let whole = values[0].is_i64();
        let kind = if whole { Kind::Int64 } else { Kind::Double };
        let name: &'static str = name.clone().leak();
        let model = Tensors(vec![(name, Tensor::zeros([3], (kind, Device::Cpu)))]);
        let rest = recorded.keys().filter(|other| *other != name);
        rest.fold(open(&path), |import, other| import.ignore(other)).load_into(&model)?;
        let seen = &model.0[0].1;
        if whole {
            let expected: Vec<i64> = values.iter().filter_map(serde_json::Value::as_i64).collect();
            assert_eq!(Vec::<i64>::try_from(seen)?, expected, "{name}");
        } else {
            let expected: Vec<f64> = values.iter().map(parsed).collect();
            assert_eq!(Vec::<f64>::try_from(seen)?, expected, "{name}");
        }
    }
    for (key, kind) in [("complex", "C64"), ("too_large", "U64")] {
        std::fs::write(&path, crate::transforms::bytes(text(&all, key))).expect("room on the disk");
        let said = message(Import::open(&path));
        assert!(said.contains(&format!("is of type {kind}, and no dtype of libtorch")), "{said}");
    }
    Ok(())
}

/// Integers that a smaller dtype would wrap, and fractions that an integer dtype would truncate,
/// are refused.
#[rstest]
#[case(
    Kind::Int64,
    300.0,
    Kind::Int8,
    "the file contains values that cannot be represented in int8"
)]
#[case(Kind::Int64, 2.0, Kind::Bool, "the file contains values that cannot be represented in bool")]
#[case(
    Kind::Float8e4m3fn,
    1.5,
    Kind::Int64,
    "float8_e4m3fn in the file, but int64 in the model: int64 cannot represent fractions"
)]
#[case(
    Kind::Float,
    1e6,
    Kind::Half,
    "the file contains values that cannot be represented in float16"
)]
fn values_that_would_change_are_refused(
    #[case] there: Kind,
    #[case] value: f64,
    #[case] here: Kind,
    #[case] says: &str,
) {
    let full = Tensor::full([2], value, (Kind::Double, Device::Cpu)).to_kind(there);
    let (_folder, path) = file(&[("x", full)]);
    let model = Tensors(vec![("x", Tensor::zeros([2], (here, Device::Cpu)))]);
    let said = message(load(&model, &path));
    assert!(said.contains(says), "{said}");
}
