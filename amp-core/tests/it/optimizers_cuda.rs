//! Tests of this crate's optimizer kernels, which exist only on CUDA (`AMP_DEVICE=cuda`). The
//! expected results are libtorch's on the CPU.

use amp_core::{
    Result,
    hardware::seed_everything,
    nn::Parameter,
    optim::{
        Adafactor, Adam, AdamW, BuildOptimizer, Capabilities, Lamb, Lion, Moments, OnDevice,
        Optimizer, Rates, RmsProp, Sgd,
    },
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{sha256, wide},
    device, needs_cuda, parameter, seeded,
};

/// Returns parameters and their gradients. There are more tensors than one launch of the kernel
/// accepts. Most sizes are not a multiple of the kernel's block size, and the gradient of one
/// matrix is a transposed view. The absolute values of gradients are at least a half, so that
/// weight decay does not cancel them.
fn tensors(kind: Kind) -> (Vec<Tensor>, Vec<Tensor>) {
    let _generator = seeded(3);
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind);
    let mut shapes: Vec<Vec<i64>> = (1..68).map(|at| vec![at * at]).collect();
    shapes.extend([vec![123, 77], vec![0], vec![]]);
    let away = |grad: Tensor| &grad + grad.sign() * 0.5;
    let params = shapes.iter().map(|shape| draw(shape)).collect();
    let mut grads: Vec<Tensor> = shapes.iter().map(|shape| away(draw(shape))).collect();
    grads[67] = away(draw(&[77, 123])).transpose(0, 1);
    (params, grads)
}

fn build_with(
    options: &dyn BuildOptimizer,
    params: &[Tensor],
    device: Device,
    moments: Moments,
) -> Result<Box<dyn Optimizer>> {
    let named = |(at, tensor): (usize, &Tensor)| parameter(&format!("{at}"), &tensor.to(device));
    options.build_with(params.iter().enumerate().map(named).collect(), moments.into())
}

fn build(
    options: &dyn BuildOptimizer,
    params: &[Tensor],
    device: Device,
) -> Result<Box<dyn Optimizer>> {
    build_with(options, params, device, Moments::Full)
}

/// Sets the gradients of the parameters. Each gradient keeps its memory layout.
fn give(parameters: &[Parameter], grads: &[Tensor]) {
    for (parameter, grad) in parameters.iter().zip(grads) {
        let mut own = parameter.tensor.grad();
        if own.defined() {
            own.copy_(grad);
        } else {
            let given = grad.to(parameter.tensor.device());
            (&parameter.tensor * &given).sum(given.kind()).backward();
        }
    }
}

/// Returns the largest difference between the weights of the two optimizers, and between their
/// states, in units in the last place. For values below 1, the unit of 1 is used.
fn distances(a: &dyn Optimizer, b: &dyn Optimizer, epsilon: f64) -> Result<[f64; 2]> {
    let weights = |optimizer: &dyn Optimizer| -> Vec<Tensor> {
        optimizer.parameters().iter().map(|parameter| wide(&parameter.tensor)).collect()
    };
    let states = |optimizer: &dyn Optimizer| -> Result<Vec<Tensor>> {
        Ok(optimizer.state()?.tensors().map(|(_, tensor)| wide(tensor)).collect())
    };
    let largest = |a: Vec<Tensor>, b: Vec<Tensor>| {
        assert_eq!(a.len(), b.len());
        let pairs = a.iter().zip(&b).filter(|(a, _)| a.numel() > 0);
        pairs.fold(0.0, |most: f64, (a, b)| {
            let size = b.abs().clamp_min(1.0);
            most.max(((a - b).abs() / size).max().double_value(&[]) / epsilon)
        })
    };
    Ok([largest(weights(a), weights(b)), largest(states(a)?, states(b)?)])
}

const ALL: Capabilities = Capabilities { skips: true, scales: true, captures: true };

const NESTEROV: Sgd =
    Sgd { lr: 1e-3, momentum: 0.9, dampening: 0.0, weight_decay: 0.1, nesterov: true, fused: true };
const DAMPED: Sgd = Sgd { dampening: 0.5, nesterov: false, ..NESTEROV };
const CENTERED: RmsProp =
    RmsProp { lr: 1e-2, alpha: 0.99, eps: 1e-8, weight_decay: 0.01, momentum: 0.9, centered: true };

/// Twenty steps on CUDA equal twenty steps on the CPU. The learning rates change, and the gradients
/// change their absolute value and sign. The tolerance is counted in units in the last place:
///
/// - In each step, two units are allowed. A step rounds a weight twice (for the decay and for the
///   update), and an average twice (for the decay and for the new value).
/// - In each step, one more unit is allowed, because some optimizers add the decay to the gradient.
///   This sum may be rounded once or twice, and squaring the sum doubles its error.
/// - Lion's update is the sign of an average of momentum and gradient, and needs no further
///   tolerance. The absolute value of this average is at least 0.05 times that of the gradient, so
///   rounding never changes the sign.
/// - The state of Adafactor may differ by n + 4 further units, where n = 123 is the largest number
///   of squares in a sum.
///
/// The last bound is derived as follows. Adafactor computes means of squares over rows and columns.
/// The devices add the squares in different orders. Let u be half a unit in the last place. In any
/// order, a sum of n squares has an error of at most n·u: each square has the error u, and n − 1
/// additions of positive numbers have the error (n − 1)·u (Higham, Accuracy and Stability, 4.2).
/// The square root of the sum has the error n/2·u + u. The square of this root has the error
/// (n + 3)·u. After the division by n, the mean has the error (n + 4)·u. The difference between two
/// devices is then at most n + 4 units. Later steps do not increase the difference, because a
/// running mean of positive numbers has at most the error of its inputs and of the roundings above.
#[rstest]
#[case::adamw(&AdamW { weight_decay: 0.1, ..Default::default() }, 0)]
#[case::adamw_plain(&AdamW { weight_decay: 0.0, ..Default::default() }, 0)]
#[case::adam(&Adam { weight_decay: 0.1, betas: (0.8, 0.99), ..Default::default() }, 0)]
#[case::sgd(&Sgd::default(), 0)]
#[case::sgd_momentum(&Sgd { momentum: 0.9, ..Default::default() }, 0)]
#[case::sgd_nesterov(&NESTEROV, 0)]
#[case::sgd_damped(&DAMPED, 0)]
#[case::rmsprop(&RmsProp::default(), 0)]
#[case::rmsprop_momentum(&RmsProp { centered: false, ..CENTERED }, 0)]
#[case::rmsprop_centered(&RmsProp { momentum: 0.0, ..CENTERED }, 0)]
#[case::rmsprop_both(&CENTERED, 0)]
#[case::lion(&Lion::default(), 0)]
#[case::lion_decay(&Lion { weight_decay: 0.1, ..Default::default() }, 0)]
#[case::adafactor(&Adafactor { weight_decay: 0.1, ..Default::default() }, 123)]
#[case::lamb(&Lamb::default(), 0)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn steps_on_cuda_equal_steps_on_the_cpu(
    #[case] options: &dyn BuildOptimizer,
    #[case] longest_sum: i32,
    #[values((Kind::Double, f64::EPSILON), (Kind::Float, f32::EPSILON as f64), (Kind::BFloat16, 0.0078125))]
    (kind, epsilon): (Kind, f64),
) -> Result<()> {
    needs_cuda();
    let (params, grads) = tensors(kind);
    let mut ours = build(options, &params, device())?;
    let mut theirs = build(options, &params, Device::Cpu)?;
    for step in 1..=20 {
        let momentum = ours.rates()[0].momentum.map(|_| 0.95 - 0.01 * f64::from(step));
        let rates = Rates { lr: 1e-2 / f64::from(step), momentum };
        let size = [-0.25, 4.0, 4.0][step as usize % 3];
        let grads: Vec<Tensor> = grads.iter().map(|grad| grad * size).collect();
        for optimizer in [&mut ours, &mut theirs] {
            give(optimizer.parameters(), &grads);
            optimizer.set_rates(&[rates]);
            optimizer.step()?;
        }
        let [weights, states] = distances(ours.as_ref(), theirs.as_ref(), epsilon)?;
        let rounded = 3.0 * f64::from(step);
        // The optimizer state of 16-bit weights is f32, so its errors are counted in units of f32.
        let unit = epsilon.min(f64::from(f32::EPSILON)) / epsilon;
        let summed = if longest_sum > 0 { f64::from(longest_sum + 4) * unit } else { 0.0 };
        assert!(
            weights <= rounded,
            "step {step}: weights are {weights} units in the last place off"
        );
        assert!(
            states <= rounded + summed,
            "step {step}: states are {states} units in the last place off"
        );
    }
    Ok(())
}

/// A schedule may set the momentum to 0 and back. As long as the momentum is 0, the momentum
/// buffers do not change, as in PyTorch.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn buffers_do_not_change_while_the_momentum_is_zero() -> Result<()> {
    needs_cuda();
    let (params, grads) = tensors(Kind::Float);
    let mut ours = build(&NESTEROV, &params, device())?;
    let mut theirs = build(&NESTEROV, &params, Device::Cpu)?;
    for (step, momentum) in [0.9, 0.0, 0.0, 0.8].into_iter().enumerate() {
        for optimizer in [&mut ours, &mut theirs] {
            give(optimizer.parameters(), &grads);
            optimizer.set_rates(&[Rates { lr: 1e-2, momentum: Some(momentum) }]);
            optimizer.step()?;
        }
        let [weights, states] = distances(ours.as_ref(), theirs.as_ref(), f64::from(f32::EPSILON))?;
        let off = weights.max(states);
        assert!(off <= 2.0 * (step + 1) as f64, "{off} units in the last place");
    }
    Ok(())
}

#[rstest]
#[case::adamw(&AdamW::default(), Moments::Full)]
#[case::adamw_bf16(&AdamW::default(), Moments::Bf16)]
#[case::adamw_8bit(&AdamW::default(), Moments::EightBit)]
#[case::sgd(&NESTEROV, Moments::Full)]
#[case::sgd_damped(&DAMPED, Moments::Full)]
#[case::rmsprop(&CENTERED, Moments::Full)]
#[case::lion(&Lion::default(), Moments::Full)]
#[case::adafactor(&Adafactor::default(), Moments::Full)]
#[case::lamb(&Lamb::default(), Moments::Full)]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_factor_multiplies_gradients_and_a_skipped_step_moves_nothing(
    #[case] options: &dyn BuildOptimizer,
    #[case] moments: Moments,
) -> Result<()> {
    needs_cuda();
    let (params, grads) = tensors(Kind::Float);
    let _section = seeded(3);
    let number = |value: f32| Tensor::from(value).to(device());
    let mut scaled = build_with(options, &params, device(), moments)?;
    let mut plain = build_with(options, &params, device(), moments)?;
    // Some optimizers compute their first step differently from later steps. Both optimizers
    // therefore make their first step before the comparison.
    for optimizer in [&mut scaled, &mut plain] {
        seed_everything(3)?;
        give(optimizer.parameters(), &grads);
        optimizer.step()?;
        assert_eq!(optimizer.capabilities(), ALL);
    }
    let state = |optimizer: &dyn Optimizer| -> Result<Vec<String>> {
        let state = optimizer.state()?;
        let weights = optimizer.parameters().iter().map(|parameter| sha256(&parameter.tensor));
        Ok(weights.chain(state.tensors().map(|(_, tensor)| sha256(tensor))).collect())
    };
    let before = state(plain.as_ref())?;
    let (factor, zero, one) = (number(0.3), number(0.0), number(1.0));
    for step in 0..3 {
        // With the same seed, the two optimizers use the same random numbers.
        seed_everything(step)?;
        give(scaled.parameters(), &grads);
        scaled.step_with(OnDevice { factor: Some(&factor), found_inf: Some(&zero) })?;
        let small: Vec<Tensor> = grads.iter().map(|grad| grad * 0.3_f32 as f64).collect();
        give(plain.parameters(), &small);
        seed_everything(step)?;
        plain.step()?;
    }
    let after = state(plain.as_ref())?;
    assert_ne!(before, after);
    assert_eq!(state(scaled.as_ref())?, after);
    for void in [one, number(f32::NAN)] {
        scaled.step_with(OnDevice { factor: None, found_inf: Some(&void) })?;
        assert_eq!(state(scaled.as_ref())?, after);
    }
    Ok(())
}

/// Each optimizer declares which of three things its step can do on the device: skip itself, scale
/// the gradients, and run in a CUDA graph. The test checks the declaration before the first step,
/// after a step in which only the first of two parameters had a gradient, and after a step in which
/// both had one. On CUDA, this crate's kernels can do all three, and libtorch's kernels can do none
/// of them. On the CPU, libtorch's fused kernels can skip a step. SGD with dampening computes the
/// first step of a parameter differently from later steps. It can therefore do these things only
/// after the first step of every parameter.
#[rstest]
#[case::adamw(&AdamW::default(), true, [true; 3])]
#[case::sgd(&NESTEROV, true, [true; 3])]
#[case::sgd_damped(&DAMPED, true, [false, false, true])]
#[case::rmsprop(&CENTERED, false, [true; 3])]
#[case::lion(&Lion::default(), false, [true; 3])]
#[case::adafactor(&Adafactor::default(), false, [true; 3])]
#[case::lamb(&Lamb::default(), false, [true; 3])]
#[case::adamw_foreach(&AdamW { fused: false, ..Default::default() }, false, [false; 3])]
#[case::sgd_foreach(&Sgd { fused: false, ..NESTEROV }, false, [false; 3])]
fn each_optimizer_declares_its_capabilities(
    #[case] options: &dyn BuildOptimizer,
    #[case] skips_on_the_cpu: bool,
    #[case] can: [bool; 3],
) -> Result<()> {
    let (params, grads) = tensors(Kind::Float);
    let all = if device().is_cuda() {
        ALL
    } else {
        Capabilities { skips: skips_on_the_cpu, ..Capabilities::default() }
    };
    let expected = |can: bool| if can { all } else { Capabilities::default() };
    let mut optimizer = build(options, &params[..2], device())?;
    assert_eq!(optimizer.capabilities(), expected(can[0]), "before the first step");
    for (stepped, can) in (1..).zip(&can[1..]) {
        give(&optimizer.parameters()[..stepped], &grads[..stepped]);
        optimizer.step()?;
        assert_eq!(optimizer.capabilities(), expected(*can), "after step {stepped}");
    }
    Ok(())
}

/// CUDA computes the same 8-bit codes as the CPU, except that a value within a rounding error of
/// the middle between two codes may get the other code. The betas are zero, so that the running
/// averages are the gradient and its square. The averages and the scales of blocks then have the
/// same bits on both devices. The cases cover all decades, full and partial blocks, zeros, and
/// gradients that are transposed or not aligned.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn codes_equal_the_cpus() -> Result<()> {
    needs_cuda();
    let _generator = seeded(4);
    let draw = |count: i64| {
        let exponents = Tensor::rand([count], (Kind::Double, Device::Cpu)) * -20.0;
        let signs = Tensor::randn([count], (Kind::Double, Device::Cpu)).sign();
        (signs * exponents.exp()).to_kind(Kind::Float)
    };
    let mut grads: Vec<Tensor> = [1, 255, 256, 257, 5000, 70_001].map(draw).into();
    grads.push(Tensor::zeros([300], (Kind::Float, Device::Cpu)));
    grads.push(draw(1200).view([40, 30]).transpose(0, 1));
    grads.push(draw(1001).narrow(0, 1, 1000));
    let params: Vec<Tensor> = grads.iter().map(|grad| grad.contiguous().zeros_like()).collect();
    let options = Adam { lr: 0.0, betas: (0.0, 0.0), ..Default::default() };
    let mut states = Vec::new();
    for place in [Device::Cpu, device()] {
        let mut optimizer = build_with(&options, &params, place, Moments::EightBit)?;
        for _ in 0..2 {
            give(optimizer.parameters(), &grads);
            optimizer.step()?;
        }
        states.push(optimizer.state()?);
    }
    for (name, seen) in states[1].tensors() {
        let exact = states[0].tensor(name)?;
        if seen.kind() != Kind::Uint8 {
            assert_eq!(sha256(seen), sha256(exact), "{name}");
            continue;
        }
        let off = (wide(seen) - wide(exact)).abs();
        let (most, sum) = (off.max().double_value(&[]), off.sum(Kind::Double).double_value(&[]));
        assert!(most <= 1.0 && sum <= 1e-3 * seen.numel() as f64, "{name}: {most} {sum}");
    }
    Ok(())
}

/// AdamW without fused kernels can neither skip a step nor scale gradients on the device, and
/// refuses to do so.
#[rstest]
fn a_missing_capability_is_refused() -> Result<()> {
    let (params, _) = tensors(Kind::Float);
    let number = Tensor::from(1.0_f32);
    let mut optimizer = build(&AdamW { fused: false, ..Default::default() }, &params, Device::Cpu)?;
    for known in [
        OnDevice { factor: Some(&number), found_inf: None },
        OnDevice { factor: None, found_inf: Some(&number) },
    ] {
        let text = crate::support::message(optimizer.step_with(known));
        assert!(text.contains("AdamW cannot skip a step or scale gradients"), "{text}");
    }
    Ok(())
}
