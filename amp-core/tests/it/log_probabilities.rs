//! Tests that losses of log probabilities refuse logits and probabilities.

use amp_core::{
    loss::{Ctc, KlDiv, Loss, Nll},
    prelude::*,
};
use rstest::rstest;

use crate::support::{message, seeded};

fn logits(size: &[i64]) -> Tensor {
    let _section = seeded(4);
    Tensor::randn(size, (Kind::Double, Device::Cpu))
}

fn nll(output: &Tensor) -> Result<Tensor> {
    Nll::default().compute(output, &Tensor::from_slice(&[0_i64, 2, 1]))
}

fn divergence(output: &Tensor) -> Result<Tensor> {
    KlDiv::default().compute(output, &logits(&[3, 4]).f_softmax(1, Kind::Double)?)
}

fn divergence_of_logs(output: &Tensor) -> Result<Tensor> {
    KlDiv { log_target: true, batchmean: true }.compute(output, &output.f_sub_scalar(0.5)?)
}

fn ctc(output: &Tensor) -> Result<Tensor> {
    let labels = Tensor::from_slice(&[1_i64, 2, 3, -100, 1, 1]).view([3, 2]);
    Ctc::default().compute(&output.f_unsqueeze(1)?.f_expand([3, 5, 4], false)?, &labels)
}

/// Losses of log probabilities refuse outputs that are logits or probabilities. From such outputs,
/// torch computes a loss that may be negative.
#[rstest]
fn logits_and_probabilities_are_refused(
    #[values(nll, divergence, divergence_of_logs, ctc)] loss: fn(&Tensor) -> Result<Tensor>,
    #[values(Kind::Double, Kind::Float, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let logits = logits(&[3, 4]).f_to_kind(kind)?;
    for output in [&logits, &logits.f_softmax(1, kind)?] {
        let said = message(loss(output));
        let expected = "the output must be log probabilities, which are at most 0, but reaches ";
        assert!(said.contains(expected), "{said}");
        assert!(said.ends_with("apply a log softmax"), "{said}");
    }
    assert!(loss(&logits.f_log_softmax(1, kind)?)?.f_double_value(&[])?.is_finite());
    Ok(())
}

#[test]
fn a_target_that_is_no_log_probability_is_refused() -> Result<()> {
    let (output, target) = (logits(&[3, 4]).f_log_softmax(1, Kind::Double)?, logits(&[3, 4]));
    let said = message(KlDiv { log_target: true, batchmean: true }.compute(&output, &target));
    assert!(said.contains("the target must be log probabilities"), "{said}");
    Ok(())
}

/// Outputs slightly above 0 are accepted, because rounding may make the logarithm of a probability
/// of 1 positive. NaN is accepted too, and gives a NaN loss, which the trainer detects.
#[test]
fn rounding_errors_and_nan_are_accepted() -> Result<()> {
    let output = Tensor::from_slice(&[1e-6_f32, -20.0, -20.0, -20.0]).view([1, 4]);
    let of = Tensor::from_slice(&[0_i64]);
    assert!(Nll::default().compute(&output, &of).is_ok());
    assert!(
        Nll::default().compute(&output.f_mul_scalar(f64::NAN)?, &of)?.double_value(&[]).is_nan()
    );
    assert!(Nll::default().compute(&output.f_narrow(0, 0, 0)?, &of.f_narrow(0, 0, 0)?).is_ok());
    Ok(())
}
