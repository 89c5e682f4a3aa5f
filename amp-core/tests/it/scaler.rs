//! Tests GradScaler against 1,000 recorded runs of torch.amp.GradScaler.

use amp_core::{
    Result,
    optim::{BuildOptimizer, Optimizer, Sgd},
    precision::{GradScaler, GradScalerConfig, StepOutcome},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use serde::Deserialize;
use serde_json::Value;

use crate::support::{
    bits::{assert_bits, from_bits, has_bits, kind_of, values},
    device, message,
    oracle::{integer, list, number, oracle, text},
    parameter, set_gradients,
};

/// What was recorded for one optimizer in one iteration. `fixtures/oracles/README.md` describes the
/// fields.
#[derive(Deserialize)]
struct Part(
    String,
    Vec<Option<String>>,
    Option<u8>,
    u8,
    Option<Vec<Option<String>>>,
    Option<Vec<String>>,
);

/// Compares every step of a family of recorded runs (traces). These values are compared: the
/// scale's bits on the device and in the host's copy, the growth tracker, the skipped steps, the
/// unscaled gradients and the parameters.
///
/// The recorded traces cover these rules of docs/SEMANTICS.md: 3 (reciprocal in f64), 4 (skip if
/// any gradient is not finite), 5 (growth, backoff, the limits of f32) and 6 (one update for
/// several optimizers).
#[rstest]
#[case::random("random", 512)]
#[case::top("top", 80)]
#[case::bottom("bottom", 80)]
#[case::burst("burst", 80)]
#[case::second_only("second_only", 80)]
#[case::partial("partial", 60)]
#[case::dtype("dtype", 40)]
#[case::fused("fused", 40)]
#[case::manual("manual", 20)]
#[case::wide("wide", 8)]
fn traces_equal_torchs_step_by_step(
    #[case] family: &str,
    #[case] count: usize,
) -> amp_core::Result<()> {
    let oracle = oracle!("grad_scaler.json");
    let traces: Vec<(usize, &Value)> = list(&oracle, "traces")
        .iter()
        .enumerate()
        .filter(|(_, trace)| text(trace, "family") == family)
        .collect();
    assert_eq!(traces.len(), count, "every recorded trace is replayed");
    traces.into_iter().try_for_each(|(at, trace)| replay(&format!("trace {at}"), trace))
}

fn replay(name: &str, trace: &Value) -> amp_core::Result<()> {
    let config = GradScalerConfig {
        init_scale: number(trace, "init_scale"),
        growth_factor: number(trace, "growth_factor"),
        backoff_factor: number(trace, "backoff_factor"),
        growth_interval: integer(trace, "growth_interval"),
    };
    let mut scaler = GradScaler::new(Device::Cpu, config)?;
    let mut optimizers = list(trace, "optimizers")
        .iter()
        .map(|described| {
            let params = list(described, "params").iter().enumerate().map(|(at, param)| {
                let kind = kind_of(param[0].as_str().expect("a dtype"));
                parameter(&format!("p{at}"), &from_bits(kind, param[1].as_str().expect("bits")))
            });
            let sgd = Sgd { lr: number(described, "lr"), ..Default::default() };
            sgd.build(params.collect())
        })
        .collect::<amp_core::Result<Vec<_>>>()?;
    for (at, iteration) in list(trace, "iterations").iter().enumerate() {
        let name = format!("{name}, iteration {at}");
        let scale_before = scaler.scale_value();
        let _loss = scaler.scale(&Tensor::from(1.0_f32))?;
        for (index, (part, optimizer)) in
            iteration[0].as_array().expect("parts").iter().zip(&mut optimizers).enumerate()
        {
            let part: Part = serde_json::from_value(part.clone()).expect("six fields");
            let name = format!("{name}, optimizer {index}");
            // torch's fused kernel divides by the loss scale. All other code multiplies by the
            // reciprocal of the scale. If the scale is a power of two, the results have the same
            // bits.
            let fused = trace["fused"] == 1 && part.0 == "s";
            let exact = !fused || scale_before.log2().fract() == 0.0;
            drive(&name, &mut scaler, optimizer.as_mut(), &part, fused, exact)?;
        }
        match iteration.get(3) {
            None => scaler.update()?,
            Some(scale) => {
                scaler.set_scale(scale.as_str().expect("a text").parse().expect("f64"))?
            }
        }
        let (scale, tracker) = scaler.read_device()?;
        let expected = iteration[1].as_str().expect("bits");
        assert_eq!(format!("{:08x}", scale.to_bits()), expected, "{name}: the scale");
        assert_eq!(i64::from(tracker), iteration[2], "{name}: the tracker");
        let mirror = (scaler.scale_value(), scaler.growth_tracker());
        assert_eq!(mirror, (f64::from(scale), tracker), "{name}: the host's mirror");
    }
    Ok(())
}

fn drive(
    name: &str,
    scaler: &mut GradScaler,
    optimizer: &mut dyn Optimizer,
    part: &Part,
    fused: bool,
    exact: bool,
) -> amp_core::Result<()> {
    let Part(mode, given, found_inf, applied, unscaled, params) = part;
    if mode.is_empty() {
        return Ok(());
    }
    let kinds: Vec<Kind> = optimizer.parameters().iter().map(|p| p.tensor.kind()).collect();
    let grads: Vec<Option<Tensor>> = given
        .iter()
        .zip(&kinds)
        .map(|(grad, kind)| grad.as_ref().map(|grad| from_bits(*kind, grad)))
        .collect();
    let before: Vec<Tensor> = optimizer.parameters().iter().map(|p| p.tensor.copy()).collect();
    set_gradients(optimizer, &grads);
    let gradients = scaler.gradients(optimizer)?;
    let gradients = scaler.unscale(gradients)?;
    // torch unscales the gradients of skipped steps too, except with its fused kernel. The
    // gradients of steps that the fused kernel has skipped are therefore not compared.
    if !(fused && *applied == 0) {
        let expected = unscaled.as_ref().unwrap_or(given).iter().zip(optimizer.parameters().iter());
        for (expected, parameter) in expected {
            let grad = parameter.tensor.grad();
            assert_eq!(grad.defined(), expected.is_some(), "{name}: only one side has a gradient");
            if let Some(expected) = expected {
                compare(&grad, expected, exact, &format!("{name}: unscaled gradient"));
            }
        }
    }
    if mode.contains('s') {
        let skipped = matches!(scaler.step(gradients, optimizer)?, StepOutcome::Skipped { .. });
        assert_eq!((Some(u8::from(skipped)), u8::from(!skipped)), (*found_inf, *applied), "{name}");
    }
    for (at, parameter) in optimizer.parameters().iter().enumerate() {
        let what = format!("{name}: parameter {at}");
        match params {
            None => assert!(
                has_bits(&parameter.tensor, &crate::support::bits::bits(&before[at])),
                "{what}"
            ),
            Some(params) => {
                compare(&parameter.tensor, &params[at], exact, &what);
                // The parameters are reset, so that a difference in the last bit of one step does
                // not affect the next.
                let expected = from_bits(parameter.tensor.kind(), &params[at]);
                amp_core::tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&expected));
            }
        }
    }
    Ok(())
}

/// Asserts equal bits, or, if torch divides and this crate multiplies, a difference of at most two
/// roundings.
#[track_caller]
fn compare(tensor: &Tensor, expected: &str, exact: bool, what: &str) {
    if exact {
        return assert_bits(tensor, expected, what);
    }
    let expected = values(&from_bits(tensor.kind(), expected));
    for (seen, expected) in values(tensor).into_iter().zip(expected) {
        let near = (seen - expected).abs() <= 2.0_f64.powi(-22) * expected.abs();
        let same = seen == expected || (seen.is_nan() && expected.is_nan());
        assert!(near || same, "{what}: {seen:e} for torch's {expected:e}");
    }
}

/// The gradient of the loss with which the backward pass starts is the loss scale. If the loss is
/// three times a weight, the weight's gradient is therefore three times the scale. A loss may have
/// any dtype, and the shape `[]` or `[1]`. A loss with several elements is refused.
#[rstest]
fn backward_starts_from_the_scale(
    #[values(Kind::Float, Kind::Double, Kind::BFloat16)] kind: Kind,
    #[values((true, 1024.0), (false, 1.0))] (scales, scale): (bool, f64),
) -> Result<()> {
    let config = GradScalerConfig { init_scale: scale, ..GradScalerConfig::default() };
    let scaler = match scales {
        true => GradScaler::new(device(), config)?,
        false => GradScaler::checking(device())?,
    };
    let weight = Tensor::from(2.0).to_kind(kind).to(device()).reshape([1]).set_requires_grad(true);
    scaler.scale(&(&weight * 3.0).sum(kind))?.backward()?;
    scaler.scale(&(&weight * 3.0))?.backward()?;
    assert_eq!(weight.grad().double_value(&[0]), 6.0 * scale);
    let several = scaler.scale(&weight.expand([2], false));
    assert!(
        message(several).contains("a loss must be a scalar, but has shape [2]: take the mean, as")
    );
    Ok(())
}
