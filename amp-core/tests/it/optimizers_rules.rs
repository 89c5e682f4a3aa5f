//! Tests of optimizers whose update depends on whole parameters. Muon and Adafactor are compared
//! with 50 recorded steps of torch.optim, and LAMB is compared with its paper. Other tests check
//! the state that these optimizers keep, and what they refuse.

use amp_core::{
    Result,
    nn::Parameter,
    optim::{
        Adafactor, AdamW, AdjustLr, BuildOptimizer, Lamb, Moments, Muon, Optimizer,
        OptimizerConfig, Optimizers, ParamGroups, Rates, Selection, Storage, WeightUpdate,
    },
    precision::{GradScaler, GradScalerConfig, StepOutcome},
    tch::{Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{from_bits, kind_of, values},
    device, message,
    oracle::{Lcg, integer, list, number, oracle, parsed, shapes, text},
    parameter, set_gradients,
};

fn built(case: &Value) -> Box<dyn BuildOptimizer> {
    let hyper = &case["hyper"];
    let (lr, weight_decay) = (number(hyper, "lr"), number(hyper, "weight_decay"));
    let pair = |key: &str| (parsed(&hyper[key][0]), parsed(&hyper[key][1]));
    match text(case, "optimizer") {
        "Muon" => Box::new(Muon {
            lr,
            weight_decay,
            momentum: number(hyper, "momentum"),
            nesterov: hyper["nesterov"] == true,
            ns_coefficients: {
                let (a, b) = pair("ns_coefficients");
                (a, b, parsed(&hyper["ns_coefficients"][2]))
            },
            eps: number(hyper, "eps"),
            ns_steps: integer(hyper, "ns_steps"),
            adjust_lr_fn: match hyper["adjust_lr_fn"] == "match_rms_adamw" {
                true => AdjustLr::MatchRmsAdamw,
                false => AdjustLr::Original,
            },
        }),
        "Adafactor" => Box::new(Adafactor {
            lr,
            beta2_decay: number(hyper, "beta2_decay"),
            eps: (hyper["eps"][0].as_str().map(|_| pair("eps").0), parsed(&hyper["eps"][1])),
            d: number(hyper, "d"),
            weight_decay,
        }),
        _ => Box::new(Lamb { lr, betas: pair("betas"), eps: number(hyper, "eps"), weight_decay }),
    }
}

/// Returns the parameters of a case, and the generator of their gradients.
fn start(oracle: &Value, case: &Value, kind: Kind) -> (Vec<Parameter>, Lcg) {
    let mut lcg = Lcg(integer(oracle, "seed") as u64);
    let drawn = shapes(case).into_iter().enumerate().map(|(at, shape)| {
        let mut value = lcg.tensor(&shape, 128.0);
        if case["zeroed"] == at {
            let _ = value.zero_();
        }
        parameter(&format!("p{at}"), &value.to_kind(kind).to_device(device()))
    });
    (drawn.collect(), lcg)
}

fn take_step(optimizer: &mut dyn Optimizer, lcg: &mut Lcg, factor: f64) -> Result<()> {
    let grads: Vec<Option<Tensor>> = optimizer
        .parameters()
        .iter()
        .map(|Parameter { tensor, .. }| {
            let grad = lcg.tensor(&tensor.size(), 64.0) * factor;
            Some(grad.to_kind(tensor.kind()).to_device(tensor.device()))
        })
        .collect();
    set_gradients(optimizer, &grads);
    optimizer.step()
}

/// Returns the tolerance for the weights after `step` steps. Muon's Newton-Schulz iteration
/// computes in bfloat16, and its matrix products in bfloat16 differ between processors. The
/// elements of the iteration's matrices are below 1, which limits their errors.
fn bound(case: &Value, kind: Kind, step: i64) -> f64 {
    let rounding = match text(case, "optimizer") {
        "Muon" => {
            let size = if case["hyper"]["adjust_lr_fn"] == "match_rms_adamw" { 0.7 } else { 1.5 };
            number(&case["hyper"], "lr") * size * 2.0_f64.powi(-6)
        }
        _ => 0.0,
    };
    step as f64 * (rounding + rounding_of(kind))
}

/// Returns the tolerance for the rounding errors of one step in the dtype `kind`.
fn rounding_of(kind: Kind) -> f64 {
    8.0 * if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) }
}

#[track_caller]
fn assert_near(seen: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    let (seen, expected) = (values(seen), values(expected));
    assert_eq!(seen.len(), expected.len(), "{what}");
    for (seen, expected) in seen.into_iter().zip(expected) {
        let off = (seen - expected).abs();
        assert!(off <= bound, "{what}: found {seen}, expected {expected}");
    }
}

/// The parameters after 1, 2, 10 and 50 steps equal the recorded ones up to rounding. The recorded
/// tensors of the optimizer state after 10 steps are also reproduced up to rounding.
#[rstest]
#[case("Muon", 5)]
#[case("Adafactor", 5)]
#[case("LAMB", 4)]
fn fifty_steps_equal_the_recorded_ones(
    #[case] name: &str,
    #[case] count: usize,
    #[values(Kind::Float, Kind::Double)] kind: Kind,
) -> Result<()> {
    let oracle = oracle!("rules.json");
    let recorded = |case: &&Value| {
        text(case, "optimizer") == name && (name == "LAMB" || kind_of(text(case, "dtype")) == kind)
    };
    let cases: Vec<&Value> = list(&oracle, "cases").iter().filter(recorded).collect();
    assert_eq!(cases.len(), count);
    for case in cases {
        let (parameters, mut lcg) = start(&oracle, case, kind);
        let mut optimizer = built(case).build(parameters)?;
        let (first, recorded) = (optimizer.rates()[0], kind_of(text(case, "dtype")));
        let tensor = |bits: &Value| from_bits(recorded, bits.as_str().expect("bits"));
        let named = |what: &str| format!("{name} {}: {what}", text(case, "name"));
        for step in 1..=integer(&oracle, "steps") {
            if text(case, "lr_rule") == "linear256" {
                let lr = first.lr * (257 - step) as f64 / 256.0;
                optimizer.set_rates(&[Rates { lr, ..first }]);
            }
            take_step(optimizer.as_mut(), &mut lcg, number(case, "grad_factor"))?;
            let Some(recorded) = case["params"][step.to_string()].as_array() else { continue };
            for (parameter, bits) in optimizer.parameters().iter().zip(recorded) {
                let what = named(&format!("{} after {step}", parameter.name));
                assert_near(&parameter.tensor, &tensor(bits), bound(case, kind, step), &what);
            }
            if step != 10 {
                continue;
            }
            let state = optimizer.state()?;
            for (at, kept) in list(case, "state_10").iter().enumerate() {
                for (slot, bits) in kept.as_object().expect("slots") {
                    let (path, expected) = (format!("{slot}/p{at}"), tensor(bits));
                    // The count of steps is f32 here. In torch, it has torch's default dtype, which
                    // was f32 in the recording.
                    let expected = match slot == "step" {
                        true => from_bits(Kind::Float, bits.as_str().expect("bits")),
                        false => expected,
                    };
                    let largest = expected.abs().max().double_value(&[]);
                    let bound = 10.0 * rounding_of(kind) * largest;
                    assert_near(state.tensor(&path)?, &expected, bound, &named(&path));
                }
            }
        }
    }
    Ok(())
}

/// The default options of each optimizer equal torch's. The default options of LAMB equal those in
/// the code of its paper.
#[test]
fn the_defaults_are_torchs() {
    let oracle = oracle!("rules.json");
    let Muon { lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn } =
        Muon::default();
    let case = list(&oracle, "cases").iter().find(|case| text(case, "optimizer") == "Muon");
    let hyper = &case.expect("recorded")["hyper"];
    let (a, b, c) = ns_coefficients;
    assert_eq!(
        [lr, weight_decay, momentum, eps, a, b, c],
        [
            number(hyper, "lr"),
            number(hyper, "weight_decay"),
            number(hyper, "momentum"),
            number(hyper, "eps"),
            parsed(&hyper["ns_coefficients"][0]),
            parsed(&hyper["ns_coefficients"][1]),
            parsed(&hyper["ns_coefficients"][2]),
        ]
    );
    assert_eq!((nesterov, ns_steps, adjust_lr_fn), (true, 5, AdjustLr::Original));
    let Adafactor { lr, beta2_decay, eps, d, weight_decay } = Adafactor::default();
    assert_eq!((lr, beta2_decay, eps, d, weight_decay), (1e-2, -0.8, (None, 1e-3), 1.0, 0.0));
}

/// If bf16 weights have f32 master weights, the master weights have the same bits as f32 weights
/// with the same gradients. This shows that the optimizer gets each master weight as a whole, in
/// the shape of its parameter, and not in flat pieces.
#[rstest]
fn masters_are_updated_like_f32_weights(
    #[values("Muon", "Adafactor", "LAMB")] name: &str,
) -> Result<()> {
    let oracle = oracle!("rules.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "optimizer") == name);
    let case = case.expect("recorded");
    let run = |kind: Kind, storage: Storage| -> Result<Box<dyn Optimizer>> {
        let (parameters, mut lcg) = start(&oracle, case, kind);
        let mut optimizer = built(case).build_with(parameters, storage)?;
        (0..10).try_for_each(|_| take_step(optimizer.as_mut(), &mut lcg, 1.0))?;
        Ok(optimizer)
    };
    let exact = run(Kind::Float, Storage::default())?;
    let masters = run(Kind::BFloat16, WeightUpdate::MasterWeights.into())?;
    let (exact_state, state) = (exact.state()?, masters.state()?);
    for (own, other) in masters.parameters().iter().zip(exact.parameters().iter()) {
        let master = state.tensor(&format!("master/{}", own.name))?;
        assert_eq!(master, &other.tensor, "{}", own.name);
        assert_eq!(own.tensor, other.tensor.to_kind(Kind::BFloat16), "{}", own.name);
    }
    for (slot, tensor) in exact_state.tensors() {
        assert_eq!(state.tensor(slot)?, tensor, "{slot}");
    }
    Ok(())
}

/// With optimizer state in bf16 or 8 bits, the trained parameters are close to those trained with
/// f32 state. Their difference is less than a tenth of the total change of the parameters.
#[rstest]
fn state_in_fewer_bits_stays_near_f32(
    #[values("Muon", "LAMB")] name: &str,
    #[values(Moments::Bf16, Moments::EightBit)] moments: Moments,
) -> Result<()> {
    let _generator = crate::support::seeded(0);
    let oracle = oracle!("rules.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "optimizer") == name);
    let case = case.expect("recorded");
    let run = |moments: Moments| -> Result<(Tensor, Tensor)> {
        let (parameters, mut lcg) = start(&oracle, case, Kind::Float);
        let flat = |parameters: &[Parameter]| {
            let flat = parameters.iter().map(|p| p.tensor.detach().copy().view(-1));
            Tensor::cat(&flat.collect::<Vec<_>>(), 0)
        };
        let before = flat(&parameters);
        let mut optimizer = built(case).build_with(parameters, moments.into())?;
        (0..10).try_for_each(|_| take_step(optimizer.as_mut(), &mut lcg, 1.0))?;
        let kept = optimizer.state()?;
        let kind = match moments {
            Moments::Bf16 => Kind::BFloat16,
            Moments::EightBit => Kind::Uint8,
            _ => Kind::Float,
        };
        let slot = if name == "Muon" { "momentum_buffer/p0" } else { "exp_avg/p0" };
        assert_eq!(kept.tensor(slot)?.kind(), kind);
        Ok((before, flat(optimizer.parameters())))
    };
    let (before, full) = run(Moments::Full)?;
    let (_, reduced) = run(moments)?;
    let share = (&reduced - &full).norm() / (&full - &before).norm();
    let share = share.double_value(&[]);
    assert!(share > 0.0 && share < 0.1, "{share}");
    Ok(())
}

/// If the gradients of a step overflow, the step does not change weights and state. The scaler and
/// clipping are active.
#[rstest]
fn a_step_that_overflows_changes_nothing(
    #[values("Muon", "Adafactor", "LAMB")] name: &str,
    #[values(Moments::Full, Moments::EightBit)] moments: Moments,
) -> Result<()> {
    let oracle = oracle!("rules.json");
    let case = list(&oracle, "cases").iter().find(|case| text(case, "optimizer") == name);
    let case = case.expect("recorded");
    let run = |overflows: bool| -> Result<Box<dyn Optimizer>> {
        let (parameters, mut lcg) = start(&oracle, case, Kind::Float);
        let mut optimizer = built(case).build_with(parameters, moments.into())?;
        let mut scaler = GradScaler::new(device(), GradScalerConfig::default())?;
        for step in 0..4 {
            let sizes = if overflows && step == 2 { vec![1e38, 1.0] } else { vec![1.0] };
            let pulls: Vec<Tensor> = optimizer
                .parameters()
                .iter()
                .map(|p| lcg.tensor(&p.tensor.size(), 64.0).to_device(device()))
                .collect();
            for size in sizes {
                optimizer.zero_grad()?;
                let parts = optimizer.parameters().iter().zip(&pulls);
                let parts = parts.map(|(p, pull)| (&p.tensor * pull * size).sum(Kind::Float));
                scaler
                    .scale(&Tensor::stack(&parts.collect::<Vec<_>>(), 0).sum(Kind::Float))?
                    .backward()?;
                let gradients = scaler.gradients(optimizer.as_ref())?;
                let gradients = scaler.unscale_and_clip_norm(gradients, 1.0)?;
                let outcome = scaler.step(gradients, optimizer.as_mut())?;
                assert_eq!(outcome == StepOutcome::Applied, size == 1.0, "{outcome:?}");
                scaler.update()?;
            }
        }
        Ok(optimizer)
    };
    let (plain, skipping) = (run(false)?, run(true)?);
    for (one, other) in plain.parameters().iter().zip(skipping.parameters().iter()) {
        assert_eq!(one.tensor, other.tensor, "{}", one.name);
    }
    let state = skipping.state()?;
    for (slot, tensor) in plain.state()?.tensors() {
        assert_eq!(state.tensor(slot)?, tensor, "{slot}");
    }
    Ok(())
}

/// Muon's Newton-Schulz iteration makes a matrix nearly orthogonal. Without momentum and weight
/// decay, the singular values of an update are near 1 for any gradient (0.7 to 1.2 according to
/// Muon's authors).
#[rstest]
#[case([6, 4])]
#[case([4, 6])]
#[case([16, 16])]
fn muons_updates_are_nearly_orthogonal(#[case] shape: [i64; 2]) -> Result<()> {
    let zeros = Tensor::zeros(shape, (Kind::Float, device()));
    let muon = Muon { lr: 1.0, weight_decay: 0.0, ..Default::default() };
    let mut optimizer = muon.build(vec![parameter("w", &zeros)])?;
    take_step(optimizer.as_mut(), &mut Lcg(5), 1.0)?;
    let update = optimizer.parameters()[0].tensor.detach().to_kind(Kind::Double);
    let longer = (shape[0] as f64 / shape[1] as f64).max(1.0).sqrt();
    let update = if shape[0] > shape[1] { update.transpose(0, 1) } else { update } / longer;
    let squares = update.matmul(&update.transpose(0, 1)).linalg_eigvalsh("L");
    let (least, most) =
        (squares.min().sqrt().double_value(&[]), squares.max().sqrt().double_value(&[]));
    assert!(least > 0.3 && most < 1.3, "singular values from {least} to {most}");
    Ok(())
}

/// Muon refuses biases and the parameters of norms. The key `ndim` assigns such parameters to
/// another optimizer.
#[test]
fn muon_accepts_matrices_alone() -> Result<()> {
    let named =
        |name: &str, shape: &[i64]| parameter(name, &Tensor::ones(shape, (Kind::Float, device())));
    let model = || {
        vec![
            named("embedding.weight", &[9, 4]),
            named("body.weight", &[4, 4]),
            named("body.bias", &[4]),
        ]
    };
    let said = message(Muon::default().build(model()));
    assert!(said.contains("Muon updates only matrices, but `body.bias` has shape [4]"), "{said}");
    let both = |hidden: Selection| {
        let muon = OptimizerConfig::new(Muon::default()).params(hidden);
        Optimizers::from(vec![muon, OptimizerConfig::new(AdamW::default())])
            .build(model(), Storage::default())
    };
    let built = both(Selection::all().ndim(2).except(["embedding.*"]))?;
    let names = |at: usize| -> Vec<&str> {
        built[at].optimizer.parameters().iter().map(|p| p.name.as_str()).collect()
    };
    assert_eq!((names(0), names(1)), (vec!["body.weight"], vec!["embedding.weight", "body.bias"]));
    let said = message(both(Selection::all().ndim(3)));
    assert!(said.contains("the selection contains no parameter with 3 dimensions"), "{said}");
    let said = message(both(Selection::all().ndim(2).except(["head.*"])));
    assert!(said.contains("no parameter matches `head.*`"), "{said}");
    let groups = ParamGroups::new(AdamW { weight_decay: 0.1, ..Default::default() })
        .group(Selection::all().ndim(1), AdamW { weight_decay: 0.0, ..Default::default() });
    let grouped = groups.build(model())?;
    let decay = |place: usize| grouped.options(place).and_then(|o| o["weight_decay"].as_f64());
    assert_eq!([0, 1, 2].map(decay), [Some(0.1), Some(0.1), Some(0.0)]);
    Ok(())
}

#[rstest]
#[case(&Muon { lr: -1.0, ..Default::default() }, "lr is -1, but must be at least 0")]
#[case(&Muon { momentum: 1.0, ..Default::default() }, "momentum is 1, but must be in [0, 1)")]
#[case(&Muon { ns_steps: 100, ..Default::default() }, "ns_steps is 100, but must be in [0, 100)")]
#[case(&Muon { ns_coefficients: (1.0, f64::NAN, 1.0), ..Default::default() }, "ns_coefficients is NaN")]
#[case(&Muon { eps: -1.0, ..Default::default() }, "eps is -1")]
#[case(&Muon { weight_decay: -1.0, ..Default::default() }, "weight_decay is -1")]
#[case(&Adafactor { lr: f64::NAN, ..Default::default() }, "lr is NaN")]
#[case(&Adafactor { beta2_decay: 0.8, ..Default::default() }, "beta2_decay is 0.8, but must be at most 0")]
#[case(&Adafactor { d: 0.5, ..Default::default() }, "d is 0.5, but must be at least 1")]
#[case(&Adafactor { eps: (Some(-1.0), 0.0), ..Default::default() }, "eps.0 is -1")]
#[case(&Adafactor { eps: (None, -1.0), ..Default::default() }, "eps.1 is -1")]
#[case(&Lamb { betas: (1.0, 0.9), ..Default::default() }, "betas.0 is 1")]
#[case(&Lamb { eps: -1.0, ..Default::default() }, "eps is -1")]
#[case(&Lamb { weight_decay: -0.1, ..Default::default() }, "weight_decay is -0.1")]
fn options_out_of_range_are_refused(#[case] options: &dyn BuildOptimizer, #[case] says: &str) {
    let said = message(options.build(vec![parameter("p", &Tensor::from_slice(&[1.0_f32]))]));
    assert!(said.contains(says), "{said}");
}
