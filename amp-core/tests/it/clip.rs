//! Tests gradient clipping against torch.nn.utils. For 16-bit gradients, the expected results are
//! computed in f64, because torch's own 16-bit norm overflows or is imprecise.

use amp_core::{
    Result,
    optim::{BuildOptimizer, Optimizer, Sgd},
    precision::{Clip, GradScaler, GradScalerConfig, StepOutcome, clip_grad_norm, clip_grad_value},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    bits::{assert_bits, from_bits, values},
    device, message,
    oracle::{Lcg, integer, list, number, oracle, shapes, text},
    parameter, set_gradients,
};

/// Returns the initial gradients of a recorded case.
fn gradients(oracle: &Value, case: &Value) -> Vec<Tensor> {
    let mut lcg = Lcg(integer(oracle, "seed") as u64);
    let factor = from_bits(Kind::Float, text(case, "factor"));
    let grads: Vec<Tensor> =
        shapes(oracle).iter().map(|shape| lcg.tensor(shape, 64.0) * &factor).collect();
    let spoiled = text(case, "content");
    if spoiled != "finite" {
        let at = &oracle["spoiled_at"];
        let (grad, element) = (at[0].as_u64().expect("a place"), at[1].as_i64().expect("a place"));
        let mut element = grads[grad as usize].view([-1]).get(element);
        let _ = element.fill_(spoiled.parse::<f64>().expect("inf or nan"));
    }
    grads
}

fn cases<'a>(oracle: &'a Value, call: &'a str) -> impl Iterator<Item = &'a Value> {
    list(oracle, "cases").iter().filter(move |case| text(case, "call") == call)
}

#[track_caller]
fn assert_grads(grads: &[Tensor], case: &Value) {
    for (grad, bits) in grads.iter().zip(list(case, "grads")) {
        assert_bits(grad, bits.as_str().expect("bits"), &format!("clipped: {case}"));
    }
}

/// Rule 19 of docs/SEMANTICS.md: the norm before clipping and every gradient after clipping have
/// the same bits as in torch. The cases are ordinary gradients, gradients with an inf or a NaN, and
/// norms that are too large or too small for f32.
#[test]
fn norms_and_gradients_have_torchs_bits() -> Result<()> {
    let oracle = oracle!("clip.json");
    let mut count = 0;
    for case in cases(&oracle, "clip_grad_norm_").filter(|case| number(case, "norm_type") == 2.0) {
        let grads = gradients(&oracle, case);
        let norm = clip_grad_norm(&grads, number(case, "max_norm"))?;
        assert_bits(&norm, text(case, "norm"), &format!("norm: {case}"));
        assert_grads(&grads, case);
        count += 1;
    }
    assert_eq!(count, 8, "every recorded 2-norm is replayed");
    Ok(())
}

#[test]
fn clipping_by_value_has_torchs_bits() -> Result<()> {
    let oracle = oracle!("clip.json");
    let mut count = 0;
    for case in cases(&oracle, "clip_grad_value_") {
        let grads = gradients(&oracle, case);
        clip_grad_value(&grads, number(case, "clip_value"))?;
        assert_grads(&grads, case);
        count += 1;
    }
    assert_eq!(count, 6, "every recorded case is replayed");
    Ok(())
}

/// If all gradients are finite but their norm overflows f32, clipping sets the gradients to 0, as
/// torch does. The step then has no effect. The returned norm is infinite, so that callers can
/// detect this.
#[test]
fn gradients_with_an_infinite_norm_become_zero() -> Result<()> {
    let grads = [Tensor::from_slice(&[1e30_f32, -1e30])];
    let norm = clip_grad_norm(&grads, 1.0)?;
    assert!(norm.double_value(&[]).is_infinite());
    assert_eq!(values(&grads[0]), [0.0, -0.0]);
    Ok(())
}

/// The norm of f16 and bf16 gradients is computed in f32. In f16, the sum of squares would overflow
/// if the norm is 256 or more. In bf16, the sum would have only 8 binary digits.
#[rstest]
#[case(Kind::Half, 1000.0)]
#[case(Kind::Half, 1e-4)]
#[case(Kind::BFloat16, 1000.0)]
#[case(Kind::BFloat16, 1e-4)]
fn norms_of_16_bit_gradients_are_computed_in_f32(
    #[case] kind: Kind,
    #[case] size: f64,
) -> Result<()> {
    let mut lcg = Lcg(3);
    let grads: Vec<Tensor> = [[3, 5].as_slice(), &[5], &[63]]
        .iter()
        .map(|shape| (lcg.tensor(shape, 64.0) * size).to_kind(kind))
        .collect();
    let before: Vec<f64> = grads.iter().flat_map(values).collect();
    let exact = before.iter().map(|x| x * x).sum::<f64>().sqrt();
    let limit = exact / 8.0;
    let norm = clip_grad_norm(&grads, limit)?;
    assert_eq!(norm.kind(), Kind::Float);
    assert!((norm.double_value(&[]) / exact - 1.0).abs() < 1e-6);
    let after: Vec<f64> = grads.iter().flat_map(values).collect();
    assert!(grads.iter().all(|grad| grad.kind() == kind));
    // The clipping factor and its product with each gradient are both rounded to the dtype of the
    // gradients.
    let unit = if kind == Kind::Half { 2.0_f64.powi(-11) } else { 2.0_f64.powi(-8) };
    let smallest = 2.0_f64.powi(-24);
    for (after, before) in after.iter().zip(&before) {
        let expected = before * limit / (exact + 1e-6);
        assert!((after - expected).abs() <= 2.5 * unit * expected.abs() + smallest);
    }
    Ok(())
}

/// Parameters of several dtypes have one common norm. Each gradient is scaled in its own dtype.
#[test]
fn one_norm_spans_several_dtypes() -> Result<()> {
    let three = Tensor::full([1], 3.0 + 1e-9, (Kind::Double, Device::Cpu));
    let four = Tensor::full([1], 4.0, (Kind::BFloat16, Device::Cpu));
    let norm = clip_grad_norm(&[three.shallow_clone(), four.shallow_clone()], 2.5)?;
    let exact = (3.0_f64 + 1e-9).hypot(4.0);
    assert!(
        (norm.double_value(&[]) - exact).abs() < 1e-12,
        "the norm is computed in the widest dtype"
    );
    assert!((three.double_value(&[0]) - 1.5).abs() < 1e-6);
    assert_eq!((four.double_value(&[0]), four.kind()), (2.0, Kind::BFloat16));
    Ok(())
}

#[test]
fn the_norm_of_no_gradients_is_zero() -> Result<()> {
    let oracle = oracle!("clip.json");
    assert_bits(&clip_grad_norm(&[], 1.0)?, text(&oracle, "norm_without_gradients"), "the norm");
    Ok(())
}

#[rstest]
#[case(Clip::Norm(0.0))]
#[case(Clip::Norm(f64::NAN))]
#[case(Clip::Value(-1.0))]
fn a_limit_that_is_not_positive_is_refused(#[case] clip: Clip) {
    assert!(message(clip.validated()).contains("needs a positive limit"));
}

/// Builds an optimizer over three parameters whose gradients have elements up to `size`. If
/// `spoiled` is given, it replaces one element of the second gradient.
fn with_gradients(kind: Kind, size: f64, spoiled: Option<f64>) -> Result<Box<dyn Optimizer>> {
    let mut lcg = Lcg(11);
    let shapes = [vec![17, 9], vec![64], vec![3, 5, 7]];
    let grads: Vec<Tensor> = shapes
        .iter()
        .map(|shape| (lcg.tensor(shape, 2.0) * size).to_device(device()).to_kind(kind))
        .collect();
    if let Some(value) = spoiled {
        let _ = grads[1].view([-1]).get(3).fill_(value);
    }
    let names = ["first", "second", "third"].into_iter().zip(&grads);
    let parameters = names.map(|(name, grad)| parameter(name, &grad.zeros_like()));
    let mut optimizer = Sgd { fused: false, ..Default::default() }.build(parameters.collect())?;
    set_gradients(optimizer.as_mut(), &grads.into_iter().map(Some).collect::<Vec<_>>());
    Ok(optimizer)
}

/// Unscaling and clipping in one pass gives the same bits as unscaling first and then clipping,
/// because the loss scale is a power of two.
#[rstest]
fn unscaling_and_clipping_in_one_pass_has_the_same_bits(
    #[values(None, Some(65536.0), Some(0.25))] scale: Option<f64>,
    #[values(Kind::Float, Kind::Double)] kind: Kind,
    #[values(1e-3, 1e3)] size: f64,
) -> Result<()> {
    let mut bits = Vec::new();
    for at_once in [false, true] {
        let mut optimizer = with_gradients(kind, size, None)?;
        let mut scaler = match scale {
            Some(init_scale) => {
                GradScaler::new(device(), GradScalerConfig { init_scale, ..Default::default() })?
            }
            None => GradScaler::checking(device())?,
        };
        let _loss = scaler.scale(&Tensor::from(1.0_f32).to_device(device()))?;
        let gradients = scaler.gradients(optimizer.as_ref())?;
        let gradients = match at_once {
            true => scaler.unscale_and_clip_norm(gradients, 0.7)?,
            false => {
                let gradients = scaler.unscale(gradients)?;
                let _ = gradients.clip_grad_norm(0.7)?;
                gradients
            }
        };
        let seen: Vec<Vec<f64>> = gradients.named().map(|(_, grad)| values(grad)).collect();
        bits.push(seen);
        assert_eq!(scaler.step(gradients, optimizer.as_mut())?, StepOutcome::Applied);
    }
    assert_eq!(bits[0], bits[1]);
    Ok(())
}

/// The report of a skipped step names the first parameter whose gradient contains a NaN or an inf,
/// also after the gradients were unscaled and clipped.
#[rstest]
fn the_first_parameter_with_a_nan_is_named_after_clipping(
    #[values(f64::NAN, f64::INFINITY, f64::NEG_INFINITY)] value: f64,
    #[values(false, true)] scales: bool,
) -> Result<()> {
    let mut optimizer = with_gradients(Kind::Float, 1.0, Some(value))?;
    let mut scaler = match scales {
        true => GradScaler::new(device(), GradScalerConfig::default())?,
        false => GradScaler::checking(device())?,
    };
    let _loss = scaler.scale(&Tensor::from(1.0_f32).to_device(device()))?;
    let gradients = scaler.gradients(optimizer.as_ref())?;
    let gradients = scaler.unscale_and_clip_norm(gradients, 0.7)?;
    let skipped = StepOutcome::Skipped { culprit: Some("second".to_owned()) };
    assert_eq!(scaler.step(gradients, optimizer.as_mut())?, skipped);
    Ok(())
}
