//! Tests of the CTC loss, which runs on this project's kernels on CUDA. libtorch computes the
//! expected results in f64 on the CPU.

use amp_core::{
    Result,
    loss::{Ctc, Loss},
    precision::{Kernels, Policy, Precision},
    tch::{Device, Kind, Reduction, Tensor},
    trainer::StepAccess,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device, message, needs_cuda, seeded,
};

/// Returns log probabilities `[N, T, C]`, labels `[N, S]` and the number of steps of each example
/// `[N]`, on the CPU. Some neighbouring labels are equal. If there are several examples, the last
/// one has only S / 2 steps, which may be too few for its labels.
fn examples(blank: i64, [n, t, c, s]: [i64; 4]) -> [Tensor; 3] {
    let _generator = seeded(11);
    let options = (Kind::Int64, Device::Cpu);
    let logits = Tensor::randn([n, t, c], (Kind::Double, Device::Cpu)) * 3;
    let drawn = Tensor::randint(c - 1, [n, s], options);
    let labels = &drawn + drawn.ge(blank);
    let count = Tensor::arange(n, options).remainder(s + 1);
    let padded = Tensor::arange(s, options).unsqueeze(0).ge_tensor(&count.unsqueeze(1));
    let lengths = (Tensor::arange(n, options).remainder(3) * (-t / 4)) + t;
    let _ = lengths.narrow(0, n - 1, 1).fill_(if n > 1 { s / 2 } else { t });
    // The log probabilities are rounded to bf16, so that every dtype represents them exactly and
    // the expected loss is the same for all dtypes.
    let log_probs =
        logits.log_softmax(2, Kind::Double).to_kind(Kind::BFloat16).to_kind(Kind::Double);
    [log_probs, labels.masked_fill(&padded, -100), lengths]
}

/// Returns the losses and the gradient with respect to the log probabilities.
fn run(
    loss: Ctc,
    [log_probs, labels, lengths]: &[Tensor; 3],
    (kind, device): (Kind, Device),
    reduction: Reduction,
) -> Result<[Tensor; 2]> {
    let given = log_probs.copy().to_kind(kind).to_device(device).set_requires_grad(true);
    let (labels, lengths) = (labels.to_device(device), lengths.to_device(device));
    let losses = loss.reduced(&given, &labels, &lengths, reduction)?;
    let factors = Tensor::arange(losses.numel() as i64, (losses.kind(), device)) + 1;
    (losses.reshape([-1]) * factors).sum(losses.kind()).backward();
    Ok([losses, given.grad()])
}

const SHAPES: [[i64; 4]; 6] = [
    [1, 1, 2, 1],
    [3, 8, 5, 3],
    [6, 50, 30, 11],
    [2, 300, 65, 140],
    [9, 40, 1100, 7],
    [2, 1200, 40, 600],
];

/// The losses and the gradients equal those in f64. The shapes cover the different ways in which a
/// block of threads divides its work over states, labels and classes. Bounds, in units of the
/// dtype's rounding error: a loss sums over T steps, and its relative error grows with √T. A
/// gradient is the exponential of two such sums, so its error grows with 2√T times the loss. In
/// both cases, 8 units are added for the other operations.
#[rstest]
fn losses_and_gradients_equal_f64(
    #[values(Kind::Double, Kind::Float)] kind: Kind,
    #[values(0, 1)] blank: i64,
    #[values(Reduction::None, Reduction::Mean, Reduction::Sum)] reduction: Reduction,
) -> Result<()> {
    let loss = Ctc { blank, zero_infinity: true };
    let rounding = 2f64.powi(if kind == Kind::Double { -53 } else { -24 });
    for shape in SHAPES {
        let examples = examples(blank, shape);
        let exact = run(loss, &examples, (Kind::Double, Device::Cpu), reduction)?;
        let seen = run(loss, &examples, (kind, device()), reduction)?;
        let [each, _] = run(loss, &examples, (Kind::Double, Device::Cpu), Reduction::None)?;
        let (largest, steps) = (each.max().double_value(&[]).max(1.0), (shape[1] as f64).sqrt());
        let bounds = [(steps + 8.0) * rounding, (2.0 * steps + 8.0) * rounding * largest];
        for ((seen, exact), bound) in seen.iter().zip(&exact).zip(bounds) {
            assert_eq!((seen.kind(), seen.size()), (kind, exact.size()));
            let error = relative(seen, &wide(exact));
            assert!(error < bound, "{shape:?}: {error}, above {bound}");
        }
    }
    Ok(())
}

/// Repeated passes over the same examples give the same bits, although the gradient of a class is a
/// sum over all labels of this class.
#[rstest]
fn a_repeated_pass_has_the_same_bits() -> Result<()> {
    let loss = Ctc { blank: 0, zero_infinity: true };
    let examples = examples(0, [8, 120, 4, 30]);
    let first = run(loss, &examples, (Kind::Float, device()), Reduction::Mean)?;
    for _ in 0..5 {
        let again = run(loss, &examples, (Kind::Float, device()), Reduction::Mean)?;
        assert!(first[0].equal(&again[0]) && first[1].equal(&again[1]));
    }
    Ok(())
}

/// Without `zero_infinity`, an example with too few steps for its labels has an infinite loss and a
/// NaN gradient. The losses and gradients of the other examples do not change. Steps after an
/// example's length have the gradient 0.
#[rstest]
fn an_infinite_loss_stays_with_its_example() -> Result<()> {
    let examples = examples(0, [3, 8, 5, 3]);
    let on = (Kind::Double, device());
    let [losses, grad] = run(Ctc::default(), &examples, on, Reduction::None)?;
    let [zeroed, zero_grad] =
        run(Ctc { blank: 0, zero_infinity: true }, &examples, on, Reduction::None)?;
    assert!(losses.double_value(&[2]).is_infinite() && zeroed.double_value(&[2]) == 0.0);
    let rows = |tensor: &Tensor, first, count| tensor.narrow(0, first, count);
    assert!(bool::try_from(grad.get(2).narrow(0, 0, 1).isnan().all())?);
    assert_eq!(zero_grad.get(2).abs().max().double_value(&[]), 0.0);
    assert!(rows(&losses, 0, 2).equal(&rows(&zeroed, 0, 2)));
    assert!(rows(&grad, 0, 2).equal(&rows(&zero_grad, 0, 2)));
    let length = i64::try_from(examples[2].get(1))?;
    assert!(length < 8, "{length}");
    assert_eq!(grad.get(1).narrow(0, length, 8 - length).abs().max().double_value(&[]), 0.0);
    Ok(())
}

/// The loss of 16-bit log probabilities is computed in f32 and then rounded to 16 bits, except
/// under autocast, where it stays f32. The gradient has the dtype of the log probabilities.
#[rstest]
fn sixteen_bit_outputs_are_computed_in_f32(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values(true, false)] mixed: bool,
) -> Result<()> {
    let precision = if mixed { Precision::Bf16Mixed } else { Precision::F32True };
    let loss = Ctc { blank: 0, zero_infinity: true };
    let examples = examples(0, [6, 50, 30, 11]);
    let exact = run(loss, &examples, (Kind::Double, Device::Cpu), Reduction::Mean)?;
    let seen = {
        let _region = Policy::new(precision, device()).autocast()?;
        run(loss, &examples, (kind, device()), Reduction::Mean)?
    };
    let (own, rounding) = match (mixed, kind) {
        (true, _) => (Kind::Float, 2e-6),
        (false, Kind::Half) => (kind, 2f64.powi(-11)),
        (false, _) => (kind, 2f64.powi(-8)),
    };
    assert_eq!((seen[0].kind(), seen[1].kind()), (own, kind));
    let error = relative(&seen[0], &wide(&exact[0]));
    assert!(error <= rounding, "{error}");
    Ok(())
}

/// A second derivative is an error, as in PyTorch.
#[rstest]
fn there_is_no_second_derivative() -> Result<()> {
    let [log_probs, labels, lengths] = examples(0, [3, 8, 5, 3]).map(|one| one.to_device(device()));
    let given = log_probs.set_requires_grad(true);
    let loss = Ctc { blank: 0, zero_infinity: true };
    let value = loss.reduced(&given, &labels, &lengths, Reduction::Mean)?;
    let twice = || -> Result<Tensor> {
        let grads = Tensor::f_run_backward(&[value], &[&given], true, true)?;
        let energy = grads[0].f_square()?.f_sum(Kind::Double)?;
        Ok(Tensor::f_run_backward(&[energy], &[&given], false, false)?.remove(0))
    };
    let text = message(twice());
    let says = ["no second derivatives", "_ctc_loss_backward is not implemented"];
    assert!(says.iter().any(|says| text.contains(says)), "{text}");
    Ok(())
}

/// Labels and lengths that are invalid are refused. libtorch would read out of bounds or use other
/// labels.
#[rstest]
#[case::outside(&[1, 5], 4, "a label is out of range: classes are numbered from 0 to 4")]
#[case::negative(&[-1, -100], 4, "a label is out of range: classes are numbered from 0 to 4")]
#[case::blank(&[1, 0], 4, "a label is 0, the class that is reserved for the blank; pad labels with -100")]
#[case::gap(&[-100, 2], 4, "-100 stands before a label")]
#[case::long(&[1, 2], 5, "a length is not between 0 and the number of time steps, 4")]
#[case::short(&[1, 2], -1, "a length is not between 0 and the number of time steps, 4")]
fn invalid_examples_are_refused(
    #[case] labels: &[i64],
    #[case] length: i64,
    #[case] says: &str,
    #[values(Kernels::Own, Kernels::Libtorch)] kernels: Kernels,
) {
    let _kernels = kernels.enter();
    let log_probs = Tensor::zeros([2, 4, 5], (Kind::Float, device())).log_softmax(2, Kind::Float);
    let valid = Tensor::from_slice(&[3_i64, -100]);
    let labels = Tensor::stack(&[&valid, &Tensor::from_slice(labels)], 0).to_device(device());
    let lengths = Tensor::from_slice(&[4, length]).to_device(device());
    let loss = Ctc::default().reduced(&log_probs, &labels, &lengths, Reduction::Mean);
    let text = message(loss);
    assert!(text.contains(says), "{text}");
}

#[rstest]
fn a_blank_that_is_no_class_is_refused() {
    let log_probs = Tensor::zeros([2, 4, 5], (Kind::Float, device()));
    let labels = Tensor::ones([2, 2], (Kind::Int64, device()));
    let loss = Ctc { blank: 5, zero_infinity: false }.compute(&log_probs, &labels);
    let text = message(loss);
    assert!(text.contains("the blank is class 5, but there are 5"), "{text}");
}

/// A training step with this project's CTC kernels may be captured as a CUDA graph. A step with
/// libtorch's CTC loss may not, because it reads the lengths on the host.
#[test]
fn a_step_with_own_kernels_may_be_captured() {
    assert_eq!(StepAccess::of_loss(&Ctc::default()), StepAccess::Deferred);
    let _kernels = Kernels::Libtorch.enter();
    assert_eq!(
        StepAccess::of_loss(&Ctc::default()),
        StepAccess::InStep(
            "libtorch's ctc_loss reads the lengths of outputs and labels on the host"
        )
    );
}

/// On CUDA, this project's kernels and libtorch's kernels give equal losses and gradients.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn own_kernels_equal_libtorchs() -> Result<()> {
    needs_cuda();
    let loss = Ctc { blank: 1, zero_infinity: true };
    for shape in SHAPES {
        let examples = examples(1, shape);
        let on = (Kind::Double, device());
        let own = run(loss, &examples, on, Reduction::Mean)?;
        let libtorchs = {
            let _kernels = Kernels::Libtorch.enter();
            run(loss, &examples, on, Reduction::Mean)?
        };
        for (own, libtorchs) in own.iter().zip(&libtorchs) {
            let error = relative(own, &wide(libtorchs));
            assert!(error < 1e-11, "{shape:?}: {error}");
        }
    }
    Ok(())
}
