//! Tests that a C++ exception becomes an error with the text of the exception, and that the process
//! does not abort.

use amp_core::{
    Error, Result,
    hardware::parse_device,
    loss,
    nn::{Context, Dropout, Embedding, EmbeddingConfig, Module},
    precision::{Policy, Precision, clip_grad_norm},
    tch::{Device, Kind, Tensor},
};

use crate::support::{message, model::linear, seeded};

fn context() -> Context {
    Context::new(Policy::new(Precision::F32True, Device::Cpu), false)
}

/// The error has the text of the exception, without the C++ stack trace that libtorch adds.
#[test]
fn the_text_is_the_exceptions_without_its_stack() -> Result<()> {
    let _generator = seeded(0);
    let input = Tensor::ones([2, 7], (Kind::Float, Device::Cpu));
    let outcome = linear(3, 3)?.forward(&input, &context());
    assert!(matches!(outcome, Err(Error::Torch(_))));
    let said = message(outcome);
    assert_eq!(said, "libtorch: mat1 and mat2 shapes cannot be multiplied (2x7 and 3x3)");
    Ok(())
}

/// Exceptions in the C++ code of this crate are caught in the same way as exceptions in tch. Here a
/// foreach kernel refuses an integer tensor.
#[test]
fn the_shim_lets_no_exception_out() {
    let integers = [Tensor::ones([2], (Kind::Int64, Device::Cpu))];
    let outcome = clip_grad_norm(&integers, 1.0);
    assert!(matches!(outcome, Err(Error::Torch(_))));
    let said = message(outcome);
    assert_eq!(
        said,
        "libtorch: linalg.vector_norm: Expected a floating point or complex tensor as input. Got Long"
    );
    // libtorch's text of the previous error was cleared when it was read, so this error does not
    // contain it.
    let bounds = loss::cross_entropy(
        &Tensor::ones([2, 3], (Kind::Float, Device::Cpu)),
        &Tensor::from_slice(&[0_i64, 3]),
    );
    assert!(message(bounds).contains("Target 3 is out of bounds"));
}

#[test]
fn an_index_out_of_range_is_an_error() -> Result<()> {
    let _generator = seeded(0);
    let table = Embedding::new(EmbeddingConfig::new(4, 2))?;
    let said = message(table.forward(&Tensor::from_slice(&[9_i64]), &context()));
    assert!(said.starts_with("libtorch: index out of range"), "{said}");
    Ok(())
}

/// An error contains the path of the innermost module that failed. This path is complete, so the
/// modules around it add nothing.
#[test]
fn the_innermost_path_wins() {
    let inner = Error::config("shapes").at("model.0.norm1");
    assert_eq!(inner.at("model.0").at("model").to_string(), "in `model.0.norm1`: shapes");
    assert_eq!(Error::config("shapes").at("").to_string(), "shapes");
}

#[test]
fn sizes_and_probabilities_are_checked_before_libtorch_is_asked() {
    assert!(message(linear(0, 3)).contains("linear(0, 3): both sizes must be positive"));
    assert!(message(Dropout::new(1.5)).contains("dropout(1.5): the probability must be in [0, 1]"));
    assert!(message(Dropout::new(f64::NAN)).contains("the probability must be in [0, 1]"));
}

#[test]
fn an_unknown_device_is_named() {
    let said = message(parse_device("gpu"));
    assert_eq!(said, "unknown device `gpu`: expected auto, cpu, cuda or cuda:N");
    assert!(message(parse_device("cuda:x")).contains("unknown device `cuda:x`"));
    assert!(message(parse_device("cuda:99")).contains("device `cuda:99`"));
    assert!(parse_device("cpu").is_ok_and(|device| device == Device::Cpu));
}
