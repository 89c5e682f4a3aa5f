//! Tests of Adam on f16 parameters. torch's Adam diverges with such parameters, or does not change
//! them any more (Lightning #20619).

use amp_core::{
    Result,
    convert::f16,
    optim::{Adam, AdamW, BuildOptimizer},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::values, parameter, set_gradient};

/// The expected results: Adam computed in f64 by its definition. Only the weight is rounded to f16.
struct Reference {
    options: AdamW,
    decoupled: bool,
    weight: f64,
    mean: f64,
    square: f64,
    step: i32,
}

impl Reference {
    fn step(&mut self, grad: f64) {
        let AdamW { lr, betas: (beta1, beta2), eps, weight_decay, .. } = self.options;
        let decay = weight_decay * self.weight;
        let grad = if self.decoupled { grad } else { grad + decay };
        self.step += 1;
        self.mean = beta1 * self.mean + (1.0 - beta1) * grad;
        self.square = beta2 * self.square + (1.0 - beta2) * grad * grad;
        let (mean, square) = (
            self.mean / (1.0 - beta1.powi(self.step)),
            self.square / (1.0 - beta2.powi(self.step)),
        );
        let decay = if self.decoupled { lr * decay } else { 0.0 };
        let moved = self.weight - decay - lr * mean / (square.sqrt() + eps);
        self.weight = f16::from_f64(moved).to_f64();
    }
}

/// With the default eps, f16 parameters follow Adam in f64. The gradients are as small as the
/// smallest f16 number, and as large as the largest gradients that occur in training. The tolerance
/// is four units in the last place of a parameter below 1: one unit is lost wherever f32 and f64
/// round to different neighbours.
///
/// If the optimizer state were f16, the parameters would not follow Adam for very small and very
/// large gradients. The running square of gradients under 5e-3 would be zero, so the update would
/// be divided by eps. The running square of gradients above 256 would be infinite, so the parameter
/// would not change any more. If the state were multiplied by 2⁸, it would already be infinite at
/// gradients of 1.
#[rstest]
fn f16_parameters_follow_adam_in_f64(
    #[values(6e-8, 1e-5, 1e-3, 0.1, 1.0, 2.0, 40.0, 300.0, 3e4)] size: f64,
    #[values(true, false)] decoupled: bool,
) -> Result<()> {
    const STEPS: i32 = 400;
    let options = AdamW { lr: 1e-3, weight_decay: 1e-2, ..Default::default() };
    let AdamW { lr, betas, eps, weight_decay, fused } = options;
    // The parameter has two elements. The gradients of the first element are all positive. Those of
    // the second element are positive in every third step and negative otherwise, like noise.
    let start = [0.5, -0.25];
    let start_tensor = Tensor::from_slice(&start).to_kind(Kind::Half);
    let parameters = vec![parameter("p", &start_tensor)];
    let mut optimizer = match decoupled {
        true => options.build(parameters)?,
        false => Adam { lr, betas, eps, weight_decay, fused }.build(parameters)?,
    };
    let mut reference = start.map(|weight| Reference {
        options,
        decoupled,
        weight,
        mean: 0.0,
        square: 0.0,
        step: 0,
    });
    for step in 0..STEPS {
        let signs = [1.0, if step % 3 == 0 { 1.0 } else { -1.0 }];
        let grad = Tensor::from_slice(&signs.map(|sign| sign * size)).to_kind(Kind::Half);
        optimizer.zero_grad()?;
        set_gradient(&optimizer.parameters()[0], &grad);
        optimizer.step()?;
        for (reference, grad) in reference.iter_mut().zip(values(&grad)) {
            reference.step(grad);
        }
    }
    let tensor = &optimizer.parameters()[0].tensor;
    assert_eq!(tensor.kind(), Kind::Half);
    for (seen, reference) in values(tensor).into_iter().zip(&reference) {
        let tolerance = 4.0 * 2.0_f64.powi(-11);
        let expected = reference.weight;
        assert!(
            (seen - expected).abs() < tolerance,
            "found {seen}, expected {expected} at gradients of {size}"
        );
    }
    Ok(())
}

/// Large f16 parameters are converted to f32 in pieces. Each piece is updated exactly once, with
/// the same result as a small parameter.
#[test]
fn every_piece_of_a_large_f16_parameter_is_updated_once() -> Result<()> {
    let sizes = [3_000_000, 5, 2_000_000, 5_000_000, 7];
    let parameters: Vec<_> = sizes
        .iter()
        .map(|size| parameter("p", &Tensor::ones([*size], (Kind::Half, Device::Cpu))))
        .collect();
    let mut optimizer =
        AdamW { lr: 0.25, weight_decay: 0.0, ..Default::default() }.build(parameters)?;
    for parameter in optimizer.parameters().iter() {
        set_gradient(parameter, &Tensor::ones_like(&parameter.tensor));
    }
    optimizer.step()?;
    for parameter in optimizer.parameters().iter() {
        assert_eq!(parameter.tensor.min().double_value(&[]), 0.75);
        assert_eq!(parameter.tensor.max().double_value(&[]), 0.75);
    }
    Ok(())
}

/// A note explains the difference from PyTorch. It is printed once, and only if there are f16
/// parameters.
#[test]
fn only_f16_parameters_get_a_note() -> Result<()> {
    let note = |kind| -> Result<Option<String>> {
        let one = Tensor::ones([1], (kind, Device::Cpu));
        Ok(AdamW::default().build(vec![parameter("p", &one)])?.note())
    };
    assert!(note(Kind::Half)?.is_some_and(|text| text.contains("float32")));
    assert_eq!(note(Kind::Float)?, None);
    assert_eq!(note(Kind::BFloat16)?, None);
    Ok(())
}
