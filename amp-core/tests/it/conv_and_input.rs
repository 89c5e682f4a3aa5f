//! Tests of a convolution whose input is also used by another operation. On CUDA
//! (`AMP_DEVICE=cuda`), one matrix product computes the sum of the two gradients of the input. The
//! expected results are computed by libtorch in f64 on the CPU.

use amp_core::{
    nn::{Child, Context, Conv2dConfig, Module},
    precision::{Policy, Precision},
    prelude::*,
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, fill, rounding},
    needs_cuda, seeded,
};

/// The uses of the input that contribute to the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uses {
    Both,
    Convolution,
    Other,
}

fn conv(side: i64, stride: i64, bias: bool) -> Result<Conv2d> {
    let config = Conv2dConfig { bias, stride: stride.into(), ..Conv2dConfig::new(24, 40, side) };
    Conv2d::new(Conv2dConfig { padding: (side / 2).into(), ..config })
}

fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Returns a loss that depends on the outputs that `uses` names. Its gradient is `for_y` with
/// respect to `y` and `for_x` with respect to `x`.
fn loss(y: &Tensor, x: &Tensor, [for_y, for_x]: [&Tensor; 2], uses: Uses) -> Tensor {
    let sum = |a: &Tensor, b: &Tensor| (a * b.to(a.device()).to_kind(a.kind())).sum(Kind::Double);
    match uses {
        Uses::Both => sum(y, for_y) + sum(x, for_x),
        Uses::Convolution => sum(y, for_y),
        Uses::Other => sum(x, for_x),
    }
}

/// `and_input` returns the output of the convolution and a tensor with the same bits as the input.
/// The output and the gradients of the input and the weight equal those in f64. A gradient is
/// undefined if it is undefined in f64. For some 1×1 convolutions, one matrix product computes the
/// sum of the input's two gradients. For other convolutions, they are added after the backward pass
/// of the convolution.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn gradients_are_those_of_f64(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
    #[values([1, 1], [3, 1], [1, 2])] kernel: [i64; 2],
    #[values(Uses::Both, Uses::Convolution, Uses::Other)] uses: Uses,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(31);
    let ([side, stride], compute) = (kernel, precision.compute());
    let policy = Policy::new(precision, device());
    let layer = conv(side, stride, false)?;
    let own = fill(&layer, policy, 0.2, 0.0)?;
    let given = draw(&[3, 24, 6, 10], compute, 1.0, 0.0);
    let x = channels_last(&given.to(device())).set_requires_grad(true);
    let cx = Context::new(policy, true);
    let (y, again) = {
        let _region = policy.autocast()?;
        Child::new("conv", None, &layer).and_input(&x, &cx)?
    };
    assert!(again.equal(&x));
    let incoming = [y.size(), x.size()].map(|size| draw(&size, compute, 1.0, 0.0));
    loss(&y, &again, incoming.each_ref(), uses).backward();

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let exact = [leaf(&given), leaf(&own[0])];
    let output = exact[0].conv2d(
        &exact[1],
        None::<Tensor>,
        [stride, stride],
        [side / 2, side / 2],
        [1, 1],
        1,
    );
    loss(&output, &exact[0], incoming.each_ref(), uses).backward();
    let seen = [("output", y.detach(), output.detach())].into_iter().chain(
        [("input", &x, &exact[0]), ("weight", &own[0], &exact[1])]
            .map(|(name, own, exact)| (name, own.grad(), exact.grad())),
    );
    for (name, seen, exact) in seen {
        assert_eq!(seen.defined(), exact.defined(), "{name}");
        if seen.defined() {
            let (off, bound) = (relative(&seen, &exact), 2.0 * rounding(compute));
            assert!(off < bound, "{name}: error {off}, bound {bound}");
        }
    }
    Ok(())
}

/// The kernel may write the sum of the input's two gradients into the memory of one of them, but
/// only if nothing else reads that gradient. This test requests the gradient of the second output
/// and checks that it keeps its values.
#[test]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_gradient_that_is_held_stays() -> Result<()> {
    needs_cuda();
    let _generator = seeded(32);
    let policy = Policy::new(Precision::Bf16Mixed, device());
    let layer = conv(1, 1, false)?;
    fill(&layer, policy, 0.2, 0.0)?;
    let of = |size: &[i64]| channels_last(&draw(size, Kind::BFloat16, 1.0, 0.0).to(device()));
    let x = of(&[2, 24, 4, 4]).set_requires_grad(true);
    let _region = policy.autocast()?;
    let (y, again) = Child::new("conv", None, &layer).and_input(&x, &Context::new(policy, true))?;
    let (for_y, for_x) = (of(&y.size()), of(&x.size()));
    let sum = (&y * &for_y).sum(Kind::Float) + (&again * &for_x).sum(Kind::Float);
    let grads = Tensor::f_run_backward(&[&sum], &[&x, &again], true, false)?;
    assert!(grads[1].equal(&for_x));
    let both = Tensor::f_run_backward(&[&sum], &[&x], false, false)?;
    assert!(grads[0].equal(&both[0]));
    assert!(!grads[0].equal(&for_x));
    Ok(())
}

/// Second derivatives, which a gradient penalty needs, can be computed through the two outputs.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn it_has_second_derivatives(#[values(1, 3)] side: i64) -> Result<()> {
    needs_cuda();
    let penalty = |policy: Policy| -> Result<Vec<Tensor>> {
        let _generator = seeded(33);
        let layer = conv(side, 1, false)?;
        let own = fill(&layer, policy, 0.0, 0.0)?;
        let weight = draw(&own[0].size(), Kind::BFloat16, 0.2, 0.0);
        amp_core::tch::no_grad(|| own[0].shallow_clone().copy_(&weight));
        let kind = if policy.device.is_cuda() { Kind::BFloat16 } else { Kind::Double };
        let x = draw(&[2, 24, 5, 5], Kind::BFloat16, 1.0, 0.0).to(policy.device).to_kind(kind);
        let x = channels_last(&x).set_requires_grad(true);
        let _region = policy.autocast()?;
        let cx = Context::new(policy, true);
        let (y, again) = Child::new("conv", None, &layer).and_input(&x, &cx)?;
        let energy = y.square().sum(Kind::Double) + (&again * &again * &again).sum(Kind::Double);
        let slope = Tensor::f_run_backward(&[energy], &[&x], true, true)?.remove(0);
        let of = slope.to_kind(Kind::Double).square().sum(Kind::Double);
        Ok(Tensor::f_run_backward(&[of], &[&x, &own[0]], false, false)?)
    };
    let seen = penalty(Policy::new(Precision::Bf16Mixed, device()))?;
    let exact = penalty(Policy::new(Precision::F64True, Device::Cpu))?;
    for (seen, exact) in seen.iter().zip(&exact) {
        let off = relative(seen, &wide(exact));
        assert!(off < 10.0 * rounding(Kind::BFloat16), "{off}");
    }
    Ok(())
}

/// 32-true does not use the kernel. There, `and_input` gives the same output and gradients, bit for
/// bit, as a call of the convolution and a separate use of the input.
#[rstest]
fn elsewhere_it_is_the_convolution(
    #[values(true, false)] bias: bool,
    #[values(true, false)] training: bool,
) -> Result<()> {
    let _generator = seeded(34);
    let policy = Policy::new(Precision::F32True, device());
    let layer = conv(1, 1, bias)?;
    fill(&layer, policy, 0.2, 0.1)?;
    let cx = Context::new(policy, training);
    let given = draw(&[2, 24, 4, 4], Kind::Float, 1.0, 0.0).to(device());
    let run = |together: bool| -> Result<[Tensor; 2]> {
        let x = given.copy().set_requires_grad(true);
        let (y, again) = match together {
            true => Child::new("conv", None, &layer).and_input(&x, &cx)?,
            false => (layer.forward(&x, &cx)?, x.shallow_clone()),
        };
        (y.square().sum(Kind::Float) + again.square().sum(Kind::Float)).backward();
        Ok([y.detach(), x.grad()])
    };
    let ([y, grad], [own_y, own_grad]) = (run(true)?, run(false)?);
    assert!(y.equal(&own_y) && grad.equal(&own_grad));
    Ok(())
}
