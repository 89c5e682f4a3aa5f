//! Tests of the kernels that compute cross entropy and accuracy on CUDA. The expected results are
//! computed by libtorch in f64 on the CPU.

use amp_core::{
    Result,
    loss::{self, CrossEntropy, Loss, Nll},
    memory::MemoryMeter,
    metric::{Accuracy, Metric},
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Reduction, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, needs_cuda, seeded,
};

/// Returns random logits and classes. Every dtype represents the logits exactly, because they have
/// few binary digits. Every fifth row has the ignored class.
fn examples(rows: i64, classes: i64) -> [Tensor; 2] {
    let logits = Tensor::randn([rows, classes], (Kind::Double, Device::Cpu)) * 4;
    let targets = Tensor::randint(classes, [rows], (Kind::Int64, Device::Cpu));
    let ignored = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(5).eq(4);
    [logits.to_kind(Kind::BFloat16).to_kind(Kind::Double), targets.masked_fill(&ignored, -100)]
}

/// Returns a leaf tensor that has the values of `tensor`, on the given device and in the given
/// dtype.
fn leaf(tensor: &Tensor, kind: Kind, device: Device) -> Tensor {
    tensor.detach().copy().to_kind(kind).to(device).set_requires_grad(true)
}

/// The loss equals the loss in f64, up to the rounding of the dtype in which it is computed, which
/// is f32 for 16-bit logits under autocast. The gradient is also rounded to the dtype of the
/// logits.
#[rstest]
#[case(Kind::Double, Precision::F64True, 1e-14, 1e-13)]
#[case(Kind::Float, Precision::F32True, 1e-6, 3e-6)]
#[case(Kind::Half, Precision::F16Mixed, 1e-6, 2.0_f64.powi(-11))]
#[case(Kind::BFloat16, Precision::Bf16Mixed, 1e-6, 2.0_f64.powi(-8))]
fn cross_entropy_equals_f64(
    #[case] kind: Kind,
    #[case] precision: Precision,
    #[case] bound: f64,
    #[case] grad_bound: f64,
    // In the last two cases, with many classes, a whole CUDA block processes one row. In the case
    // with 4099 classes, most rows are not aligned to 16 bytes.
    #[values(
        (1, 2), (7, 10), (128, 10), (300, 33), (1500, 43), (1500, 44), (70, 4099), (3, 50304)
    )]
    (rows, classes): (i64, i64),
) -> Result<()> {
    let _generator = seeded(3);
    let [logits, targets] = examples(rows, classes);
    let exact = leaf(&logits, Kind::Double, Device::Cpu);
    let exact_loss = loss::cross_entropy(&exact, &targets)?;
    (&exact_loss * 3).backward();

    let given = leaf(&logits, kind, device());
    let seen = {
        let _region = Policy::new(precision, device()).autocast()?;
        loss::cross_entropy(&given, &targets.to(device()))?
    };
    assert_eq!(seen.kind(), if kind == Kind::Double { kind } else { Kind::Float });
    (&seen * 3).backward();
    assert_eq!(given.grad().kind(), kind);
    assert!(relative(&seen, &wide(&exact_loss)) < bound);
    let error = relative(&given.grad(), &wide(&exact.grad()));
    assert!(error < grad_bound, "{error}");
    Ok(())
}

/// The loss equals libtorch's, even if a row contains non-finite values, or values whose
/// exponential overflows.
#[rstest]
#[case(&[1e4, -1e4, 0.0], 0.0)]
#[case(&[-1e4, 1e4, 0.0], 2e4)]
#[case(&[f32::NEG_INFINITY, 0.0, 0.0], f64::INFINITY)]
#[case(&[f32::INFINITY, 0.0, 0.0], f64::NAN)]
#[case(&[0.0, f32::NAN, 0.0], f64::NAN)]
fn extreme_logits_have_libtorchs_loss(#[case] row: &[f32], #[case] loss: f64) -> Result<()> {
    let target = Tensor::from_slice(&[0_i64]).to(device());
    let logits = leaf(&Tensor::from_slice(row).unsqueeze(0), Kind::Float, device());
    let seen = loss::cross_entropy(&logits, &target)?.double_value(&[]);
    assert!(seen == loss || seen.is_nan() && loss.is_nan(), "{seen}");
    Ok(())
}

#[rstest]
fn a_mean_over_no_rows_is_nan() -> Result<()> {
    let targets = Tensor::full([4], -100, (Kind::Int64, device()));
    let logits = leaf(&Tensor::zeros([4, 3], (Kind::Float, device())), Kind::Float, device());
    assert!(loss::cross_entropy(&logits, &targets)?.double_value(&[]).is_nan());
    Ok(())
}

/// Outside of an autocast region, a loss has the dtype of its logits.
#[rstest]
fn a_loss_has_the_dtype_of_its_logits(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let _generator = seeded(3);
    let [logits, targets] = examples(8, 4);
    let given = leaf(&logits, kind, device());
    assert_eq!(loss::cross_entropy(&given, &targets.to(device()))?.kind(), kind);
    Ok(())
}

#[rstest]
fn cross_entropy_has_second_derivatives(#[values(0.0, 0.01)] z_loss: f64) -> Result<()> {
    let _generator = seeded(3);
    let [logits, targets] = examples(20, 5);
    let twice = |device: Device| -> Result<Tensor> {
        let given = leaf(&logits, Kind::Double, device);
        let own = CrossEntropy { z_loss, ..CrossEntropy::default() };
        let loss = own.compute(&given, &targets.to(device))?;
        let grads = Tensor::run_backward(&[loss], &[&given], true, true);
        grads[0].square().sum(Kind::Double).backward();
        Ok(wide(&given.grad()))
    };
    let error = relative(&twice(device())?, &twice(Device::Cpu)?);
    assert!(error < 1e-12, "{error}");
    Ok(())
}

/// If several logits of a row are the largest, the first of them counts, as in libtorch's argmax.
/// If a row contains NaN and its target is not ignored, the number of correct predictions is NaN.
#[rstest]
fn correct_counts_equal_libtorchs_argmax(
    #[values(Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values((1, 2), (7, 10), (300, 33), (4096, 10), (1500, 44))] (rows, classes): (i64, i64),
) -> Result<()> {
    let _generator = seeded(3);
    // Each logit is one of five values, so that rows contain equal logits.
    let logits = Tensor::randint(5, [rows, classes], (Kind::Double, Device::Cpu)).to_kind(kind);
    let targets = Tensor::randint(classes.min(3), [rows], (Kind::Int64, Device::Cpu));
    let exact = logits.to_kind(Kind::Double).argmax(1, false).eq_tensor(&targets);
    let counts = |logits: &Tensor, targets: &Tensor| -> Result<Vec<f64>> {
        let state = Accuracy.update(&logits.to(device()), &targets.to(device()))?;
        let [counts] = state.tensors()?.try_into().expect("a sum");
        assert_eq!(counts.kind(), Kind::Double);
        Ok(Vec::try_from(counts.to(Device::Cpu))?)
    };
    let hits = exact.sum(Kind::Double).double_value(&[]);
    assert_eq!(counts(&logits, &targets)?, [hits, rows as f64]);
    // Sets the first or the last logit of the last row to NaN.
    for class in [0, -1] {
        let (with_nan, ignored) = (logits.copy(), targets.copy());
        let _ = with_nan.get(-1).get(class).fill_(f64::NAN);
        let seen = counts(&with_nan, &targets)?;
        assert!(seen[0].is_nan() && seen[1] == rows as f64, "{seen:?}");
        let _ = ignored.get(-1).fill_(-100);
        let last = exact.get(-1).to_kind(Kind::Double).double_value(&[]);
        assert_eq!(counts(&with_nan, &ignored)?, [hits - last, rows as f64 - 1.0]);
    }
    Ok(())
}

/// The loss of a batch of sequences `[N, L, C]` equals the loss of the same logits in rows `[N·L,
/// C]`. The loss of the rows is computed under `no_grad`.
#[rstest]
fn a_sequence_has_the_loss_of_its_elements() -> Result<()> {
    let _generator = seeded(3);
    let [logits, targets] = examples(12, 5);
    let (logits, targets) = (leaf(&logits, Kind::Double, device()), targets.to(device()));
    let whole = loss::cross_entropy(&logits.view([3, 4, 5]), &targets.view([3, 4]))?;
    let plain = tch::no_grad(|| loss::cross_entropy(&logits, &targets))?;
    assert!(relative(&whole, &wide(&plain)) < 1e-14);
    Ok(())
}

/// Computes the loss over the pixels of images in two forms: as the cross entropy of the logits,
/// and as the negative log-likelihood of the log-softmax. Both use the same options.
fn of_positions(
    options: (f64, i64, f64, bool),
    logits: &Tensor,
    targets: &Tensor,
    reduction: Reduction,
) -> Result<[Tensor; 2]> {
    let (label_smoothing, ignore_index, z_loss, weighted) = options;
    let weight = || weighted.then(|| Tensor::from_slice(&[0.25, 1.0, 8.0, 0.0, 3.0]));
    let entropy = CrossEntropy {
        label_smoothing,
        weight: weight(),
        ignore_index,
        z_loss,
        ..CrossEntropy::default()
    };
    let entropy = entropy.reduced(logits, targets, reduction)?;
    let shares = logits.f_log_softmax(1, logits.kind())?;
    let nll = Nll { weight: weight(), ignore_index, ..Nll::default() }
        .reduced(&shares, targets, reduction)?;
    Ok([entropy, nll])
}

/// The loss over the pixels of images equals the loss over the same logits in rows, for which
/// libtorch uses other kernels.
#[rstest]
fn a_loss_of_pixels_is_the_loss_of_rows(
    #[values(0.0, 0.1)] label_smoothing: f64,
    #[values(-100, 3)] ignore_index: i64,
    #[values(0.0, 0.01)] z_loss: f64,
    #[values(false, true)] weighted: bool,
    #[values(Reduction::Mean, Reduction::Sum)] reduction: Reduction,
) -> Result<()> {
    let _generator = seeded(3);
    let [rows, targets] = examples(2 * 6 * 4, 5);
    let images = |tensor: &Tensor| tensor.view([2, 6, 4, 5]).permute([0, 3, 1, 2]).contiguous();
    let targets = targets.clamp_min(if ignore_index == -100 { -100 } else { 0 });
    let options = (label_smoothing, ignore_index, z_loss, weighted);
    let [rows, pixels] =
        [rows.copy(), images(&rows)].map(|logits| leaf(&logits, Kind::Double, device()));
    let targets = targets.to(device());
    let by_rows = of_positions(options, &rows, &targets, reduction)?;
    let by_pixels = of_positions(options, &pixels, &targets.view([2, 6, 4]), reduction)?;
    for (expected, seen) in by_rows.iter().zip(&by_pixels) {
        let error = relative(seen, &wide(expected));
        assert!(error < 1e-14, "{error}");
        let grads = [(expected, &rows), (seen, &pixels)]
            .map(|(loss, of)| Tensor::run_backward(&[loss], &[of], true, false).remove(0));
        let error = relative(&grads[1], &wide(&images(&grads[0])));
        assert!(error < 1e-13, "{error}");
    }
    Ok(())
}

/// The mean of the losses of 300,000 pixels, ln 3 each, is finite, although their sum is larger
/// than the largest f16 number.
#[test]
fn a_mean_over_many_pixels_in_f16_is_finite() -> Result<()> {
    let logits = Tensor::zeros([2, 3, 500, 300], (Kind::Half, device()));
    let targets = Tensor::ones([2, 500, 300], (Kind::Int64, device()));
    let [entropy, nll] = of_positions((0.0, -100, 0.0, false), &logits, &targets, Reduction::Mean)?;
    for loss in [entropy, nll] {
        assert_eq!(loss.kind(), Kind::Half);
        let error = (loss.double_value(&[]) - 3.0_f64.ln()).abs();
        assert!(error < 1e-3, "{error}");
    }
    Ok(())
}

/// The loss over pixels has the same bits each time it is computed. libtorch's kernel does not
/// guarantee this.
#[rstest]
#[ignore]
fn losses_of_pixels_repeat_their_bits(
    #[values((0.0, -100, 0.0, false), (0.1, 3, 0.01, true))] options: (f64, i64, f64, bool),
    #[values(Kind::Float, Kind::Half)] kind: Kind,
    #[values(Reduction::Mean, Reduction::Sum)] reduction: Reduction,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(3);
    let logits = Tensor::randn([8, 5, 96, 96], (Kind::Float, device())).to_kind(kind);
    let targets = Tensor::randint(5, [8, 96, 96], (Kind::Int64, device()));
    let run = || of_positions(options, &logits, &targets, reduction);
    let first = run()?;
    for _ in 0..50 {
        for (again, first) in run()?.iter().zip(&first) {
            assert!(again.equal(first), "first {first:?}, then {again:?}");
        }
    }
    Ok(())
}

/// With each of its options, the cross entropy equals the loss in f64, for few and for many
/// classes.
#[rstest]
fn options_equal_f64(
    #[values((Kind::Float, Precision::F32True), (Kind::BFloat16, Precision::Bf16Mixed))]
    (kind, precision): (Kind, Precision),
    #[values((30, 12), (40, 4099))] (rows, classes): (i64, i64),
    #[values(0.0, 0.1)] label_smoothing: f64,
    #[values(-100, 3)] ignore_index: i64,
    #[values(0.0, 0.01)] z_loss: f64,
) -> Result<()> {
    let _generator = seeded(3);
    let [logits, targets] = examples(rows, classes);
    let targets = targets.masked_fill(&targets.eq(-100), ignore_index);
    let loss = CrossEntropy { label_smoothing, ignore_index, z_loss, ..CrossEntropy::default() };
    let exact = leaf(&logits, Kind::Double, Device::Cpu);
    let exact_loss = loss.compute(&exact, &targets)?;
    exact_loss.backward();
    let given = leaf(&logits, kind, device());
    let seen = {
        let _region = Policy::new(precision, device()).autocast()?;
        loss.compute(&given, &targets.to(device()))?
    };
    seen.backward();
    assert!(relative(&seen, &wide(&exact_loss)) < 1e-6);
    // On the CPU, the gradients of the cross entropy and of the z-loss are rounded separately
    // before they are added. The z-loss therefore doubles the allowed error.
    let terms = if z_loss > 0.0 { 2.0 } else { 1.0 };
    let bound = if kind == Kind::Float { 1e-5 } else { terms * 2.0_f64.powi(-8) };
    let error = relative(&given.grad(), &wide(&exact.grad()));
    assert!(error < bound, "{error}");
    Ok(())
}

/// A logit of -inf adds nothing to the loss, and its gradient is zero, for few classes and for
/// many.
#[rstest]
fn masked_logits_do_not_contribute(#[values(10, 70_000)] classes: i64) -> Result<()> {
    let given = Tensor::zeros([1, classes], (Kind::Float, Device::Cpu));
    let _ = given.narrow(1, 2, classes - 2).fill_(f64::NEG_INFINITY);
    let given = leaf(&given, Kind::Float, device());
    let loss = loss::cross_entropy(&given, &Tensor::from_slice(&[1_i64]).to(device()))?;
    loss.backward();
    assert!((loss.double_value(&[]) - 2.0_f64.ln()).abs() < 1e-6);
    let grad: Vec<f64> = Vec::try_from(given.grad().view([-1]))?;
    assert_eq!(grad[..2], [0.5, -0.5]);
    assert!(grad[2..].iter().all(|own| *own == 0.0));
    Ok(())
}

/// If nothing else uses a large tensor of logits, its memory is reused for its gradient. Otherwise
/// the logits do not change.
#[rstest]
#[case::alone(false, false, true)]
#[case::held(true, false, false)]
#[case::graph_kept(false, true, false)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn logits_that_nothing_else_holds_are_reused_for_the_gradient(
    #[case] held: bool,
    #[case] keeps: bool,
    #[case] in_place: bool,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(5);
    let (rows, width, classes) = (512, 64, 32_768);
    let draw = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, device()));
    let (x, weight) = (draw([rows, width]).set_requires_grad(true), draw([classes, width]));
    let targets = Tensor::randint(classes, [2, rows / 2], (Kind::Int64, device()));
    // The classes are the last dimension, so `cross_entropy` gets a view of the logits.
    let logits = x.matmul(&weight.tr()).view([2, rows / 2, classes]);
    let loss = loss::cross_entropy(&logits, &targets)?;
    // The first matrix product in a thread's backward pass allocates cuBLAS's workspace. It runs
    // here, before the measurement.
    let warm_up = x.matmul(&weight.tr()).sum(Kind::Float);
    drop(Tensor::f_run_backward(&[&warm_up], &[&x], false, false)?);
    drop(warm_up);
    let before = held.then(|| (logits.shallow_clone(), logits.copy()));
    drop(logits);
    let meter = MemoryMeter::start(device())?;
    let grads = Tensor::f_run_backward(&[&loss], &[&x], keeps, false)?;
    let taken = meter.read()?.peak_allocated as i64;
    let of_logits = rows * classes * 4;
    assert_eq!(
        taken < of_logits / 2,
        in_place,
        "{taken} bytes were allocated, the logits have {of_logits}"
    );
    if let Some((logits, before)) = before {
        assert!(logits.equal(&before));
    }
    let exact = wide(&x).set_requires_grad(true);
    let flat = exact.matmul(&wide(&weight).tr());
    loss::cross_entropy(&flat, &targets.view([-1]).to(Device::Cpu))?.backward();
    let error = relative(&grads[0], &wide(&exact.grad()));
    assert!(error < 1e-5, "{error}");
    Ok(())
}
