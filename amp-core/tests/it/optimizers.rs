//! Tests optimizers against 200 recorded steps of torch.optim (fused and foreach), bit for bit.

use amp_core::{
    Result,
    nn::Parameter,
    optim::{Adam, AdamW, BuildOptimizer, Lion, Rates, RmsProp, Sgd},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{assert_bits, from_bits, name_of, sha256, values},
    capability, device, message,
    oracle::{Lcg, integer, list, number, oracle, parsed, shapes, text},
    parameter, set_gradient,
};

/// In f32 on the CPU, with constant and with falling learning rates, the parameters have torch's
/// bits after 1, 2, 10, 50 and 200 steps. The last bit depends on the CPU capability (such as AVX2)
/// for which ATen chooses its kernels. The test therefore compares with the recording for the
/// capability of this machine. If MKL's square root has other bits on this machine than in the
/// recording, optimizers with a square root are compared within a bound.
#[rstest]
#[case::adamw("AdamW", "fused", 6)]
#[case::adam("Adam", "fused", 4)]
#[case::sgd("SGD", "fused", 5)]
#[case::adamw_foreach("AdamW", "foreach", 6)]
#[case::adam_foreach("Adam", "foreach", 4)]
#[case::sgd_foreach("SGD", "foreach", 5)]
#[case::rmsprop("RMSprop", "foreach", 3)]
fn two_hundred_steps_have_torchs_bits(
    #[case] kind: &str,
    #[case] way: &str,
    #[case] count: usize,
) -> Result<()> {
    let oracle = match kind {
        "AdamW" => oracle!("adamw.json"),
        _ => oracle!("optimizers.json"),
    };
    replay_all(&oracle, kind, way, count, Kind::Float)
}

/// In f64 the parameters have torch's bits after 200 steps.
#[rstest]
#[case::adamw("AdamW", "fused", 6)]
#[case::adam("Adam", "fused", 4)]
#[case::sgd("SGD", "fused", 5)]
#[case::adamw_foreach("AdamW", "foreach", 6)]
#[case::adam_foreach("Adam", "foreach", 4)]
#[case::sgd_foreach("SGD", "foreach", 5)]
#[case::rmsprop("RMSprop", "foreach", 3)]
fn two_hundred_steps_in_f64_have_torchs_bits(
    #[case] kind: &str,
    #[case] way: &str,
    #[case] count: usize,
) -> Result<()> {
    replay_all(&oracle!("optimizers_f64.json"), kind, way, count, Kind::Double)
}

/// Lion gives the weights that its paper defines. The tolerance after n steps is 2·n·ε, where ε is
/// the machine epsilon of the dtype. This allows for the rounding errors of n updates of a weight
/// below 2.
#[rstest]
fn lion_follows_its_paper(#[values(Kind::Double, Kind::Float)] dtype: Kind) -> Result<()> {
    let oracle = oracle!("lion.json");
    let epsilon = if dtype == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) };
    for case in list(&oracle, "cases") {
        replay(&oracle, case, dtype, |step, parameters| {
            for (at, bits) in
                case["params"][step.to_string()].as_array().into_iter().flatten().enumerate()
            {
                let expected = values(&from_bits(Kind::Double, bits.as_str().expect("bits")));
                for (seen, expected) in values(&parameters[at].tensor).into_iter().zip(expected) {
                    assert!(
                        (seen - expected).abs() <= 2.0 * step as f64 * epsilon,
                        "{} after step {step}: found {seen}, expected {expected}",
                        text(case, "name")
                    );
                }
            }
        })?;
    }
    Ok(())
}

/// Repeats the cases of the optimizer `kind` that were recorded for the CPU capability of this
/// machine. Asserts that there are `count` such cases.
fn replay_all(oracle: &Value, kind: &str, way: &str, count: usize, dtype: Kind) -> Result<()> {
    let way = oracle["same_way"][way].as_str().unwrap_or(way);
    let ours = capability();
    let recorded = oracle["same_capability"][&ours].as_str().unwrap_or(&ours);
    let cases: Vec<&Value> = list(oracle, "cases")
        .iter()
        .filter(|case| text(case, "optimizer") == kind && text(case, "way") == way)
        .filter(|case| text(case, "capability") == recorded)
        .collect();
    assert_eq!(cases.len(), count, "every case recorded for {recorded} is replayed");
    // Only results that use MKL's square root may differ. The fused kernels use the CPU's
    // instruction instead, and SGD has no square root.
    let same_bits = way == "fused" || kind == "SGD" || takes_the_recorded_roots(oracle, dtype);
    for case in cases {
        replay(oracle, case, dtype, |step, parameters| {
            let what = format!("{} after step {step}", text(case, "name"));
            let bits = case["params"][step.to_string()].as_array();
            for (parameter, bits) in parameters.iter().zip(bits.into_iter().flatten()) {
                let bits = bits.as_str().expect("bits");
                match same_bits {
                    true => assert_bits(&parameter.tensor, bits, &what),
                    false => assert_near(&parameter.tensor, bits, step, &what),
                }
            }
            if !same_bits {
                return;
            }
            let digests = case["sha256"].as_array().filter(|_| step == integer(oracle, "steps"));
            for (parameter, digest) in parameters.iter().zip(digests.into_iter().flatten()) {
                assert_eq!(sha256(&parameter.tensor), digest.as_str().expect("a digest"), "{what}");
            }
        })?;
    }
    Ok(())
}

/// Returns whether `torch.sqrt` has the same bits on this machine as in the recording. On the CPU,
/// `torch.sqrt` calls MKL, whose last bit depends on the maker of the processor. If the bits
/// differ, results that depend on square roots are compared within a bound.
fn takes_the_recorded_roots(oracle: &Value, dtype: Kind) -> bool {
    let roots = (Tensor::arange_start(1, 4097, (dtype, Device::Cpu)) / 7.0).sqrt();
    sha256(&roots.to_kind(Kind::Double)) == text(&oracle["sqrt"], name_of(dtype))
}

/// Asserts that the values differ from the expected ones by at most a tolerance. The tolerance
/// allows for another last bit of the f32 square root in each step. The weights are below 2, and an
/// update is no larger than the weights.
#[track_caller]
fn assert_near(tensor: &Tensor, bits: &str, step: i64, what: &str) {
    let expected = values(&from_bits(tensor.kind(), bits));
    for (seen, expected) in values(tensor).into_iter().zip(expected) {
        let tolerance = 4.0 * step as f64 * f64::from(f32::EPSILON);
        assert!((seen - expected).abs() <= tolerance, "{what}: found {seen}, expected {expected}");
    }
}

/// Runs the steps of a recorded case, and calls `look` with the parameters after each step. Steps
/// are counted from 1.
fn replay(
    oracle: &Value,
    case: &Value,
    dtype: Kind,
    look: impl Fn(i64, &[Parameter]),
) -> Result<()> {
    let shapes = shapes(oracle);
    let mut lcg = Lcg(integer(oracle, "seed") as u64);
    let parameters = shapes
        .iter()
        .enumerate()
        .map(|(at, shape)| parameter(&format!("p{at}"), &lcg.tensor(shape, 128.0).to_kind(dtype)));
    let mut optimizer = build(case)?.build(parameters.collect())?;
    let first = optimizer.rates()[0];
    for step in 0..integer(oracle, "steps") {
        if text(case, "lr_rule") == "linear256" {
            let lr = first.lr * (256 - step) as f64 / 256.0;
            optimizer.set_rates(&[Rates { lr, ..first }]);
        }
        if let Some(lr) = case["lr_first"].get(step as usize) {
            assert_eq!(optimizer.rates()[0].lr, parsed(lr));
        }
        for (parameter, shape) in optimizer.parameters().iter().zip(&shapes) {
            let grad = lcg.tensor(shape, 64.0).to_kind(dtype);
            match step {
                0 => set_gradient(parameter, &grad),
                _ => parameter.tensor.grad().copy_(&grad),
            }
        }
        optimizer.step()?;
        look(step + 1, optimizer.parameters());
    }
    Ok(())
}

fn build(case: &Value) -> Result<Box<dyn BuildOptimizer>> {
    let (hyper, fused) = (&case["hyper"], case["way"] == "fused");
    let (lr, weight_decay) = (number(hyper, "lr"), number(hyper, "weight_decay"));
    let betas = || (parsed(&hyper["betas"][0]), parsed(&hyper["betas"][1]));
    Ok(match text(case, "optimizer") {
        "AdamW" => {
            Box::new(AdamW { lr, betas: betas(), eps: number(hyper, "eps"), weight_decay, fused })
        }
        "Adam" => {
            Box::new(Adam { lr, betas: betas(), eps: number(hyper, "eps"), weight_decay, fused })
        }
        "Lion" => Box::new(Lion { lr, betas: betas(), weight_decay }),
        "RMSprop" => Box::new(RmsProp {
            lr,
            alpha: number(hyper, "alpha"),
            eps: number(hyper, "eps"),
            weight_decay,
            momentum: number(hyper, "momentum"),
            centered: hyper["centered"] == true,
        }),
        _ => Box::new(Sgd {
            lr,
            momentum: number(hyper, "momentum"),
            dampening: number(hyper, "dampening"),
            weight_decay,
            nesterov: hyper["nesterov"] == true,
            fused,
        }),
    })
}

/// The default options equal those of torch.optim. The default options of Lion equal those of its
/// paper.
#[test]
fn the_defaults_are_torchs() {
    let (adamw, adam, sgd) = (AdamW::default(), Adam::default(), Sgd::default());
    let RmsProp { lr, alpha, eps, weight_decay, momentum, centered } = RmsProp::default();
    assert_eq!(
        (lr, alpha, eps, weight_decay, momentum, centered),
        (1e-2, 0.99, 1e-8, 0.0, 0.0, false)
    );
    let Lion { lr, betas, weight_decay } = Lion::default();
    assert_eq!((lr, betas, weight_decay), (1e-4, (0.9, 0.99), 0.0));
    assert_eq!(
        (adamw.lr, adamw.betas, adamw.eps, adamw.weight_decay),
        (1e-3, (0.9, 0.999), 1e-8, 1e-2)
    );
    assert_eq!((adam.lr, adam.betas, adam.eps, adam.weight_decay), (1e-3, (0.9, 0.999), 1e-8, 0.0));
    assert_eq!((sgd.lr, sgd.momentum, sgd.dampening, sgd.weight_decay), (1e-3, 0.0, 0.0, 0.0));
}

/// If a parameter has no gradient in the first steps, its count of steps begins with its first
/// gradient, and so does its momentum with SGD. From then on, the parameter changes as it would in
/// a new optimizer.
#[rstest]
#[case::adam(&AdamW::default())]
#[case::sgd(&Sgd { momentum: 0.9, dampening: 0.5, ..Default::default() })]
fn a_parameter_without_a_gradient_waits(#[case] options: &dyn BuildOptimizer) -> Result<()> {
    let (value, grad) = (Tensor::from_slice(&[1.0_f32, -2.0]), Tensor::from_slice(&[0.5_f32, 3.0]));
    let mut alone = options.build(vec![parameter("late", &value)])?;
    set_gradient(&alone.parameters()[0], &grad);
    let mut both = options.build(vec![parameter("early", &value), parameter("late", &value)])?;
    set_gradient(&both.parameters()[0], &grad);
    both.step()?;
    assert_eq!(
        both.parameters()[1].tensor,
        value,
        "a parameter without a gradient does not change"
    );
    set_gradient(&both.parameters()[1], &grad);
    for _ in 0..3 {
        both.step()?;
        alone.step()?;
        assert_eq!(both.parameters()[1].tensor, alone.parameters()[0].tensor);
    }
    Ok(())
}

/// The first step of RMSprop equals the closed form. Each of its running averages is saved under
/// the right name.
#[rstest]
#[case(true, 0.9)]
#[case(true, 0.0)]
#[case(false, 0.9)]
#[case(false, 0.0)]
fn rmsprops_averages_have_the_right_names(
    #[case] centered: bool,
    #[case] momentum: f64,
) -> Result<()> {
    let options = RmsProp { momentum, centered, ..Default::default() };
    let value = Tensor::from_slice(&[1.0]).to(device());
    let mut optimizer = options.build(vec![parameter("p", &value)])?;
    set_gradient(&optimizer.parameters()[0], &Tensor::from_slice(&[0.5]).to(device()));
    optimizer.step()?;
    let (square, mean): (f64, f64) = (0.01 * 0.25, if centered { 0.01 * 0.5 } else { 0.0 });
    let update = 0.5 / ((square - mean * mean).sqrt() + 1e-8);
    let state = optimizer.state()?;
    for (name, kept, expected) in [
        ("square_avg/p", true, square),
        ("grad_avg/p", centered, mean),
        ("momentum_buffer/p", momentum > 0.0, update),
    ] {
        let seen = state.tensor(name).ok().map(|tensor| tensor.double_value(&[0]));
        assert_eq!(seen.is_some(), kept, "{name}");
        assert!(seen.is_none_or(|seen| (seen / expected - 1.0).abs() < 1e-14), "{name}: {seen:?}");
    }
    let moved = 1.0 - optimizer.parameters()[0].tensor.double_value(&[0]);
    assert!((moved / (options.lr * update) - 1.0).abs() < 1e-14, "{moved}");
    Ok(())
}

/// A step does not change the gradients, in any dtype.
#[rstest]
fn a_step_does_not_change_gradients(
    #[values(
        &AdamW::default(),
        &AdamW { fused: false, ..Default::default() },
        &Adam { fused: false, weight_decay: 0.1, ..Default::default() },
        &Sgd::default(),
        &Sgd { momentum: 0.9, nesterov: true, fused: false, ..Default::default() },
        &RmsProp::default(),
        &Lion::default()
    )]
    options: &dyn BuildOptimizer,
    #[values(Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let grad = Tensor::from_slice(&[0.5_f32, -3.0]).to_kind(kind);
    let mut optimizer = options.build(vec![parameter("p", &Tensor::ones_like(&grad))])?;
    set_gradient(&optimizer.parameters()[0], &grad);
    optimizer.step()?;
    assert_eq!(optimizer.parameters()[0].tensor.grad(), grad);
    Ok(())
}

/// One optimizer can update parameters of several dtypes, each in its own dtype.
#[test]
fn one_optimizer_updates_several_dtypes() -> Result<()> {
    let kinds = [Kind::Float, Kind::Half, Kind::Double, Kind::BFloat16, Kind::Half];
    let one = |kind| Tensor::ones([2], (kind, Device::Cpu));
    let parameters = kinds.iter().map(|kind| parameter("p", &one(*kind))).collect();
    let mut optimizer =
        AdamW { lr: 0.5, weight_decay: 0.0, ..Default::default() }.build(parameters)?;
    for (parameter, kind) in optimizer.parameters().iter().zip(kinds) {
        set_gradient(parameter, &one(kind));
    }
    optimizer.step()?;
    for (parameter, kind) in optimizer.parameters().iter().zip(kinds) {
        assert_eq!(parameter.tensor.kind(), kind);
        assert!(
            (parameter.tensor.double_value(&[0]) - 0.5).abs() < 1e-2,
            "Adam's first step is lr"
        );
    }
    Ok(())
}

#[rstest]
#[case(&AdamW { lr: -1.0, ..Default::default() }, "lr is -1, but must be at least 0")]
#[case(&AdamW { lr: f64::NAN, ..Default::default() }, "lr is NaN")]
#[case(&AdamW { eps: -1.0, ..Default::default() }, "eps is -1")]
#[case(&AdamW { betas: (1.0, 0.9), ..Default::default() }, "betas.0 is 1, but must be in [0, 1)")]
#[case(&Adam { betas: (0.9, -0.1), ..Default::default() }, "betas.1 is -0.1")]
#[case(&Adam { weight_decay: -1.0, ..Default::default() }, "weight_decay is -1")]
#[case(&Sgd { lr: -1.0, ..Default::default() }, "lr is -1")]
#[case(&RmsProp { alpha: 1.5, ..Default::default() }, "alpha is 1.5, but must be in [0, 1]")]
#[case(&RmsProp { momentum: -1.0, ..Default::default() }, "momentum is -1")]
#[case(&Lion { betas: (0.9, 1.0), ..Default::default() }, "betas.1 is 1, but must be in [0, 1)")]
#[case(&Lion { lr: -1.0, ..Default::default() }, "lr is -1")]
#[case(&Sgd { momentum: -1.0, ..Default::default() }, "momentum is -1")]
#[case(&Sgd { weight_decay: -1.0, ..Default::default() }, "weight_decay is -1")]
#[case(&Sgd { nesterov: true, ..Default::default() }, "momentum is 0, but must be positive with nesterov")]
#[case(
    &Sgd { nesterov: true, momentum: 0.9, dampening: 0.1, ..Default::default() },
    "dampening is 0.1, but must be 0 with nesterov"
)]
fn options_out_of_range_are_refused(#[case] options: &dyn BuildOptimizer, #[case] says: &str) {
    let said = message(options.build(vec![parameter("p", &Tensor::from_slice(&[1.0_f32]))]));
    assert!(said.contains(says), "{said}");
}
