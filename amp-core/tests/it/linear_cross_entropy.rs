//! Tests of the cross entropy of a linear layer, which is computed in chunks of rows. The expected
//! results are computed from all logits at once in f64.

use amp_core::{
    Result,
    loss::{ClassDim, CrossEntropy, Loss},
    memory::MemoryMeter,
    nn,
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Reduction, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, message, needs_cuda, seeded,
};

const FEATURES: i64 = 16;

/// The input and the parameters of a linear layer.
struct Layer {
    input: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer {
    /// Generates random values with so few binary digits that every product of a row and a column
    /// is exact in f32.
    fn draw(rows: i64, classes: i64, has_bias: bool) -> Self {
        let few =
            |size: &[i64]| Tensor::randint_low(-16, 17, size, (Kind::Double, Device::Cpu)) / 8;
        Self {
            input: few(&[rows, FEATURES]),
            weight: few(&[classes, FEATURES]),
            bias: has_bias.then(|| few(&[classes])),
        }
    }

    /// Returns a copy whose tensors require gradients. The parameters have the dtype `storage`, and
    /// the input has the dtype `kind`.
    fn leaves(&self, kind: Kind, storage: Kind) -> Self {
        let leaf = |tensor: &Tensor, kind| {
            tensor.copy().to_kind(kind).to(device()).set_requires_grad(true)
        };
        Self {
            input: leaf(&self.input, kind),
            weight: leaf(&self.weight, storage),
            bias: self.bias.as_ref().map(|bias| leaf(bias, storage)),
        }
    }

    fn of(&self, loss: &CrossEntropy, target: &Tensor, rows: Option<i64>) -> Result<Tensor> {
        loss.of_linear(&self.input, &self.weight, self.bias.as_ref(), target, rows)
    }

    fn gradients(&self) -> Vec<Tensor> {
        let all = [Some(&self.input), Some(&self.weight), self.bias.as_ref()];
        all.into_iter().flatten().map(|tensor| wide(&tensor.grad())).collect()
    }

    /// Computes loss and gradients from all logits at once in f64, with logits that were rounded to
    /// `kind`.
    fn exact(
        &self,
        loss: &CrossEntropy,
        target: &Tensor,
        kind: Kind,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let logits = nn::linear(&self.input, &self.weight, self.bias.as_ref())?;
        let rounded = logits.to_kind(kind).to_kind(Kind::Double).set_requires_grad(true);
        let value = loss.compute(&rounded, target)?;
        value.backward();
        let grad = rounded.grad();
        let mut gradients = vec![grad.matmul(&self.weight), grad.tr().matmul(&self.input)];
        if self.bias.is_some() {
            gradients.push(grad.sum_dim_intlist([0_i64].as_slice(), false, Kind::Double));
        }
        Ok((value.detach(), gradients))
    }
}

/// Returns random classes. In every fifth row the class is `ignored`.
fn targets(rows: i64, classes: i64, ignored: i64) -> Tensor {
    let options = (Kind::Int64, Device::Cpu);
    let left_out = Tensor::arange(rows, options).remainder(5).eq(4);
    Tensor::randint(classes, [rows], options).masked_fill(&left_out, ignored)
}

fn assert_close(seen: &[Tensor], exact: &[Tensor], bounds: [f64; 3]) {
    assert_eq!(seen.len(), exact.len());
    for (at, (seen, exact)) in seen.iter().zip(exact).enumerate() {
        let error = relative(seen, exact);
        assert!(error < bounds[at], "gradient {at}: {error} is not below {}", bounds[at]);
    }
}

/// The largest absolute value that a logit, or the log-sum-exp of a row of logits, may have.
const LARGEST_LOGIT: f64 = 64.0;

/// The loss and the gradients equal those in f64 within bounds, relative to the largest gradient.
/// The bounds are derived as follows:
///
/// - The gradient of the logits is rounded once to the dtype of the logits. The gradient of the
///   input is rounded once more.
/// - In f32 and f64, the rounding error of a logit below 64 is at most 64 times that of 1. The
///   exponential of the logit has this error as its relative error, so the bounds are 64 roundings.
/// - With the z-loss, the gradient of a logit is (1 + 2·z·lse)·p − y. Here lse is the logarithm of
///   the sum of exponentials, p the probability and y the target. This factor also multiplies an
///   error of p. The test divides the error by the largest gradient, which is about max(1,
///   2·z·lse).
#[rstest]
#[case(Kind::Double, Precision::F64True, 2.0_f64.powi(-46))]
#[case(Kind::Float, Precision::F32True, 2.0_f64.powi(-17))]
#[case(Kind::Half, Precision::F16Mixed, 2.0_f64.powi(-11))]
#[case(Kind::BFloat16, Precision::Bf16Mixed, 2.0_f64.powi(-8))]
fn loss_and_gradients_equal_f64(
    #[case] kind: Kind,
    #[case] precision: Precision,
    #[case] rounding: f64,
    // The cases have chunks of one row, a last chunk with fewer rows, equal chunks, and a single
    // chunk with all rows.
    #[values((50, 1), (50, 7), (64, 16), (50, 1000))] (rows, chunk): (i64, i64),
    #[values(33, 4099)] classes: i64,
    #[values(false, true)] has_bias: bool,
    #[values((0.0, -100, 0.0), (0.1, 3, 0.01), (0.0, -100, 2.0))] options: (f64, i64, f64),
) -> Result<()> {
    let _generator = seeded(4);
    let (label_smoothing, ignore_index, z_loss) = options;
    let loss = CrossEntropy { label_smoothing, ignore_index, z_loss, ..CrossEntropy::default() };
    let layer = Layer::draw(rows, classes, has_bias);
    let target = targets(rows, classes, ignore_index);
    let (exact_loss, exact) = layer.exact(&loss, &target, kind)?;
    let storage = precision.storage();
    let leaves = layer.leaves(kind, storage);
    let seen = {
        let _region = Policy::new(precision, device()).autocast()?;
        leaves.of(&loss, &target.to(device()), Some(chunk))?
    };
    assert_eq!(seen.kind(), storage);
    (&seen * 3).backward();
    assert_eq!(leaves.weight.grad().kind(), storage);
    let error = relative(&seen, &exact_loss);
    assert!(error < 1e-6_f64.min(10.0 * rounding), "loss: {error}");
    let exact: Vec<Tensor> = exact.iter().map(|tensor| tensor * 3).collect();
    let of_z = 2.0 * z_loss * LARGEST_LOGIT;
    let rounding = rounding * (1.0 + of_z) / of_z.max(1.0);
    assert_close(&leaves.gradients(), &exact, [3.0 * rounding, 2.0 * rounding, 2.0 * rounding]);
    Ok(())
}

/// The accuracy in f16 must not depend on the loss scale. With a loss scale of 1, the gradients of
/// the mean loss with respect to f16 logits are far below 6e-5, the smallest normal f16 number. The
/// forward pass therefore computes the f16 gradients of the sum of the losses, and the backward
/// pass multiplies only f32 sums by the loss scale.
#[rstest]
fn gradients_of_f16_do_not_depend_on_the_loss_scale(
    #[values(1.0, 65536.0)] scale: f64,
) -> Result<()> {
    let _generator = seeded(5);
    let (rows, classes) = (256, 4099);
    let (layer, target) = (Layer::draw(rows, classes, true), targets(rows, classes, -100));
    // With small weights the logits are near 0. The loss is the mean over the rows, so the
    // gradients of most logits are near 1 / (classes · rows).
    let layer = Layer { weight: layer.weight / 16, ..layer };
    let loss = CrossEntropy::default();
    let (_, exact) = layer.exact(&loss, &target, Kind::Half)?;
    let leaves = layer.leaves(Kind::Float, Kind::Float);
    let seen = {
        let _region = Policy::new(Precision::F16Mixed, device()).autocast()?;
        leaves.of(&loss, &target.to(device()), Some(64))?
    };
    (&seen * scale).backward();
    let exact: Vec<Tensor> = exact.iter().map(|tensor| tensor * scale).collect();
    let rounding = 2.0_f64.powi(-11);
    assert_close(&leaves.gradients(), &exact, [3.0 * rounding, 2.0 * rounding, 2.0 * rounding]);
    Ok(())
}

/// A large `z_loss` causes large gradients of the logits. They must not become infinite in f16.
#[rstest]
fn a_large_z_loss_does_not_overflow_f16() -> Result<()> {
    let _generator = seeded(6);
    let (layer, target) = (Layer::draw(8, 33, false), targets(8, 33, -100));
    let loss = CrossEntropy { z_loss: 50.0, ..CrossEntropy::default() };
    let leaves = layer.leaves(Kind::Half, Kind::Float);
    let _region = Policy::new(Precision::F16Mixed, device()).autocast()?;
    leaves.of(&loss, &target.to(device()), Some(3))?.backward();
    assert!(leaves.gradients().iter().all(|grad| grad.isfinite().all().int64_value(&[]) == 1));
    Ok(())
}

#[rstest]
fn a_mean_over_no_targets_is_nan_and_has_no_gradient() -> Result<()> {
    let _generator = seeded(6);
    let layer = Layer::draw(6, 5, true).leaves(Kind::Double, Kind::Double);
    let target = Tensor::full([6], -100, (Kind::Int64, device()));
    let seen = layer.of(&CrossEntropy::default(), &target, Some(4))?;
    assert!(seen.double_value(&[]).is_nan());
    seen.backward();
    assert!(layer.gradients().iter().all(|grad| grad.abs().max().double_value(&[]) == 0.0));
    Ok(())
}

/// If the autograd graph is kept after the backward pass, a second backward pass gives the same
/// gradients. If it is not kept, a second backward pass returns an error.
#[rstest]
fn a_graph_that_is_kept_runs_backward_twice() -> Result<()> {
    let _generator = seeded(7);
    let layer = Layer::draw(10, 7, true).leaves(Kind::Double, Kind::Double);
    let seen = layer.of(&CrossEntropy::default(), &targets(10, 7, -100).to(device()), Some(4))?;
    let inputs = [&layer.input, &layer.weight];
    let once = Tensor::f_run_backward(&[&seen], &inputs, true, false)?;
    let again = Tensor::f_run_backward(&[&seen * 2], &inputs, false, false)?;
    for (once, again) in once.iter().zip(&again) {
        assert!(relative(&(once * 2), &wide(again)) < 1e-15);
    }
    assert!(Tensor::f_run_backward(&[&seen], &inputs, false, false).is_err());
    Ok(())
}

#[rstest]
fn second_derivatives_equal_f64(#[values(0.0, 0.01)] z_loss: f64) -> Result<()> {
    let _generator = seeded(8);
    let drawn = Layer::draw(12, 5, true);
    let target = targets(12, 5, -100).to(device());
    let loss = CrossEntropy { z_loss, ..CrossEntropy::default() };
    let twice = |value: &Tensor, layer: &Layer| -> Vec<Tensor> {
        let inputs = [Some(&layer.input), Some(&layer.weight), layer.bias.as_ref()];
        let inputs: Vec<&Tensor> = inputs.into_iter().flatten().collect();
        let first = Tensor::run_backward(&[value], &inputs, true, true);
        let squares = first.iter().map(|grad| grad.square().sum(Kind::Double));
        squares.reduce(|sum, next| sum + next).expect("three").backward();
        layer.gradients()
    };
    let [chunked, whole] = [(); 2].map(|()| drawn.leaves(Kind::Double, Kind::Double));
    let seen = twice(&chunked.of(&loss, &target, Some(5))?, &chunked);
    let logits = nn::linear(&whole.input, &whole.weight, whole.bias.as_ref())?;
    let exact = twice(&loss.compute(&logits, &target)?, &whole);
    assert_close(&seen, &exact, [1e-12; 3]);
    Ok(())
}

/// Only tensors that require gradients get gradients. Under `no_grad`, the loss is the same.
#[rstest]
fn frozen_tensors_get_no_gradient(#[values(0, 1, 2)] frozen: usize) -> Result<()> {
    let _generator = seeded(9);
    let layer = Layer::draw(9, 6, true).leaves(Kind::Double, Kind::Double);
    let target = targets(9, 6, -100).to(device());
    let whole = layer.of(&CrossEntropy::default(), &target, None)?;
    let tensors = [Some(&layer.input), Some(&layer.weight), layer.bias.as_ref()];
    let _ = tensors[frozen].expect("all three").set_requires_grad(false);
    let seen = layer.of(&CrossEntropy::default(), &target, Some(4))?;
    seen.backward();
    for (at, tensor) in tensors.into_iter().flatten().enumerate() {
        assert_eq!(tensor.grad().defined(), at != frozen);
    }
    let plain = tch::no_grad(|| layer.of(&CrossEntropy::default(), &target, Some(4)))?;
    assert!(relative(&plain, &wide(&whole)) < 1e-14 && relative(&seen, &wide(&whole)) < 1e-14);
    Ok(())
}

/// With class weights, target probabilities or a 16-bit weight of the layer, the loss cannot be
/// computed in chunks. It is then computed from all logits at once.
#[rstest]
fn what_chunks_cannot_do_is_done_at_once() -> Result<()> {
    let _generator = seeded(10);
    let layer = Layer::draw(9, 6, true).leaves(Kind::Double, Kind::Double);
    let logits = nn::linear(&layer.input, &layer.weight, layer.bias.as_ref())?;
    let weighted = CrossEntropy {
        weight: Some(Tensor::arange(6, (Kind::Double, device())) + 1),
        ..CrossEntropy::default()
    };
    let classes = targets(9, 6, -100).to(device());
    let seen = layer.of(&weighted, &classes, Some(4))?;
    assert_eq!(seen, weighted.compute(&logits, &classes)?);
    let probabilities = Tensor::rand([9, 6], (Kind::Double, device())).softmax(1, Kind::Double);
    let plain = CrossEntropy::default();
    assert_eq!(layer.of(&plain, &probabilities, Some(4))?, plain.compute(&logits, &probabilities)?);
    let half = Layer::draw(9, 6, true).leaves(Kind::BFloat16, Kind::BFloat16);
    assert_eq!(half.of(&plain, &classes, Some(4))?.kind(), Kind::BFloat16);
    Ok(())
}

#[rstest]
fn mistakes_are_errors() -> Result<()> {
    let _generator = seeded(11);
    let layer = Layer::draw(9, 6, true).leaves(Kind::Double, Kind::Double);
    let (plain, classes) = (CrossEntropy::default(), targets(9, 6, -100).to(device()));
    let text = message(layer.of(&plain, &classes, Some(0)));
    assert!(text.contains("rows is 0, but must be at least 1"), "{text}");
    let text = message(layer.of(&plain, &classes.narrow(0, 0, 8), Some(4)));
    assert!(text.contains("the output is float64 [9, 6] and the target int64 [8]"), "{text}");
    if !device().is_cuda() {
        let text = message(layer.of(&plain, &(classes + 4), Some(4)));
        assert!(text.contains("Classes are numbered from 0; the class -100 is ignored"), "{text}");
    }
    Ok(())
}

/// Each element of a sequence is a row with its own target class. If the shapes do not show which
/// dimension of the logits contains the classes, the last dimension does, unless the option
/// `classes` of the loss says otherwise.
#[rstest]
fn sequences_are_rows() -> Result<()> {
    let _generator = seeded(12);
    let layer = Layer::draw(12, 5, false).leaves(Kind::Double, Kind::Double);
    let target = targets(12, 5, -100).to(device());
    let plain = CrossEntropy::default();
    let of = |shape: [i64; 2]| {
        let input = layer.input.view([shape[0], shape[1], FEATURES]);
        plain.of_linear(&input, &layer.weight, None, &target.view(shape), Some(5))
    };
    assert_eq!(of([3, 4])?, layer.of(&plain, &target, Some(5))?);
    let rows = layer.input.narrow(0, 0, 10);
    let (square, target) = (rows.view([2, 5, FEATURES]), target.narrow(0, 0, 10));
    let of_rows = plain.of_linear(&rows, &layer.weight, None, &target, Some(5))?;
    let target = target.view([2, 5]);
    let of = |loss: &CrossEntropy| loss.of_linear(&square, &layer.weight, None, &target, Some(5));
    assert_eq!(of(&plain)?, of_rows);
    let second = CrossEntropy { classes: ClassDim::Second, ..CrossEntropy::default() };
    let logits = nn::linear(&square, &layer.weight, None)?;
    let torchs = logits.cross_entropy_loss::<Tensor>(&target, None, Reduction::Mean, -100, 0.0);
    assert!((of(&second)? - torchs).abs().double_value(&[]) < 1e-12);
    Ok(())
}

/// The peak memory of a forward and a backward pass is less than half of what all logits would
/// need, because only the logits of one chunk exist at a time.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn the_logits_of_all_rows_do_not_exist_together() -> Result<()> {
    needs_cuda();
    let _generator = seeded(13);
    // By default, a chunk of logits has 8192 rows.
    let (rows, width, classes) = (32_768, 64, 16_384);
    let draw = |size: [i64; 2]| {
        (Tensor::randn(size, (Kind::Float, device())) / 8.0).set_requires_grad(true)
    };
    let (x, weight) = (draw([rows, width]), draw([classes, width]));
    let target = Tensor::randint(classes, [rows], (Kind::Int64, device()));
    let meter = MemoryMeter::start(device())?;
    let loss = {
        let _region = Policy::new(Precision::Bf16Mixed, device()).autocast()?;
        CrossEntropy::default().of_linear(&x, &weight, None, &target, None)?
    };
    loss.backward();
    let taken = meter.read()?.peak_allocated as i64;
    let logits = rows * classes * 2;
    assert!(taken < logits / 2, "{taken} bytes were allocated, all logits have {logits}");
    Ok(())
}
