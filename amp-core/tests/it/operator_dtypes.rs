//! Tests of [`OperatorDtypes`]: the results of operators in f32 are rounded to the dtypes that the
//! same operators had in 16 bits.

use amp_core::{
    nn::{OperatorDtypes, OperatorPass},
    precision::Policy,
    prelude::*,
};
use rstest::rstest;

use crate::support::{bits::bits, device, model::linear, seeded};

/// Starts a pass over the operators.
type Start = fn(&OperatorDtypes) -> Result<OperatorPass<'_>>;

/// Returns three tensors of this dtype, whose values f16 and bf16 can represent. The first one
/// requires a gradient.
fn operands(kind: Kind) -> Result<[Tensor; 3]> {
    let draw = || -> Result<Tensor> {
        let integers = Tensor::f_randint_low(-100, 100, [64], (Kind::Float, device()))?;
        Ok(integers.f_div_scalar(64.0)?.f_to_kind(kind)?)
    };
    Ok([draw()?.f_set_requires_grad(true)?, draw()?, draw()?])
}

fn in_16_and_32_bits(kind: Kind) -> Result<([Tensor; 3], [Tensor; 3])> {
    let narrow = operands(kind)?;
    let [a, b, c] = &narrow;
    let wide = |tensor: &Tensor| tensor.f_detach()?.f_to_kind(Kind::Float);
    let wide = [wide(a)?.f_set_requires_grad(true)?, wide(b)?, wide(c)?];
    Ok((narrow, wide))
}

/// Runs `body` three times: with 16-bit operands (dtypes are recorded), with f32 operands (calls
/// are counted), and with f32 operands again (results are rounded). Returns operands and result of
/// the first and of the last pass.
fn passes(
    kind: Kind,
    body: impl Fn(&[Tensor; 3]) -> Result<Tensor>,
) -> Result<([Tensor; 3], Tensor, [Tensor; 3], Tensor)> {
    let _section = seeded(3);
    let (narrow, wide) = in_16_and_32_bits(kind)?;
    let dtypes = OperatorDtypes::new()?;
    let recorded = {
        let _pass = dtypes.record()?;
        body(&narrow)?
    };
    {
        let _pass = dtypes.count()?;
        let _ = body(&wide)?;
    }
    let rounded = {
        let _pass = dtypes.round()?;
        body(&wide)?
    };
    Ok((narrow, recorded, wide, rounded))
}

/// A gradient within the forward pass, as that of a gradient penalty, can be computed in each pass.
/// On CUDA, libtorch computes it on another thread.
#[test]
fn a_gradient_within_a_pass_is_computed() -> Result<()> {
    let (_, recorded, _, rounded) = passes(Kind::BFloat16, |[a, b, _]| {
        let output = a.f_mul(b)?.f_tanh()?.f_sum(None)?;
        let gradient = Tensor::f_run_backward(&[output], &[a], true, true)?.remove(0);
        Ok(gradient.f_to_kind(Kind::Float)?.f_square()?.f_sum(None)?)
    })?;
    let [recorded, rounded] = [recorded, rounded].map(|value| value.double_value(&[]));
    assert!(recorded > 0.0 && (rounded / recorded - 1.0).abs() < 0.02, "{recorded}, {rounded}");
    Ok(())
}

/// Checks that values and gradients in f32 with emulated rounding equal those in 16 bits, bit for
/// bit. libtorch computes each of these operators in f32 and rounds the result.
#[rstest]
fn values_and_gradients_are_those_of_16_bits(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let (narrow, recorded, wide, rounded) =
        passes(kind, |[a, b, c]| Ok(a.f_mul(b)?.f_add(c)?.f_mul(b)?.f_abs()?.f_mul(c)?))?;
    assert_eq!(rounded.kind(), Kind::Float);
    assert_eq!(bits(&rounded.f_to_kind(kind)?), bits(&recorded));
    assert_eq!(bits(&rounded.f_to_kind(kind)?.f_to_kind(Kind::Float)?), bits(&rounded));
    let seed = rounded.f_ones_like()?;
    let gradient = |y: &Tensor, a: &Tensor| -> Result<Tensor> {
        let seed = seed.f_to_kind(y.kind())?;
        y.f_mul(&seed)?.f_sum(y.kind())?.backward();
        Ok(a.f_grad()?)
    };
    let exact = gradient(&recorded, &narrow[0])?;
    let emulated = gradient(&rounded, &wide[0])?.f_to_kind(kind)?;
    assert_eq!(bits(&emulated), bits(&exact));
    Ok(())
}

/// Checks that an operator whose result had 32 bits is not rounded, and that a cast leaves its
/// input as it is.
#[rstest]
fn results_in_f32_stay(#[values(Kind::Half, Kind::BFloat16)] kind: Kind) -> Result<()> {
    let (_, recorded, wide, rounded) =
        passes(kind, |[a, ..]| Ok(a.f_to_kind(Kind::Float)?.f_exp()?.f_sin()?))?;
    assert_eq!(bits(&rounded), bits(&recorded));
    let third = wide[1].f_div_scalar(3.0)?;
    let before = third.copy();
    let dtypes = OperatorDtypes::new()?;
    for (pass, to) in [
        (OperatorDtypes::record as Start, kind),
        (OperatorDtypes::count, Kind::Float),
        (OperatorDtypes::round, Kind::Float),
    ] {
        let _pass = pass(&dtypes)?;
        let _ = third.f_to_kind(to)?;
    }
    assert_eq!(bits(&third), bits(&before));
    Ok(())
}

/// Checks that an operator is not rounded if the pass in f32 runs it more often than the recorded
/// pass.
#[test]
fn other_numbers_of_calls_are_not_rounded() -> Result<()> {
    let (_, _, wide, rounded) = passes(Kind::Half, |[a, b, _]| {
        let again = a.kind() == Kind::Float;
        let product = a.f_mul(b)?;
        Ok(if again { product.f_mul(b)? } else { product })
    })?;
    let exact = wide[0].f_mul(&wide[1])?.f_mul(&wide[1])?;
    assert_eq!(bits(&rounded), bits(&exact));
    Ok(())
}

/// A module with an operation of its own after a layer.
#[derive(Module)]
#[forward(|x| Ok(inner(x)?.f_mul_scalar(1.0 / 3.0)?))]
struct Third {
    #[layer(linear(64, 64))]
    inner: Linear,
}

/// Checks that the operators of a module are rounded, and those of this crate's layers are not: the
/// gate rounds the inputs and outputs of layers itself.
#[test]
fn layers_are_left_out() -> Result<()> {
    let _section = seeded(4);
    let module = Third { inner: linear(64, 64)? };
    let x = Tensor::f_rand([2, 64], (Kind::Float, Device::Cpu))?;
    let dtypes = OperatorDtypes::new()?;
    let run = |precision, x: &Tensor| -> Result<Tensor> {
        let policy = Policy::new(precision, Device::Cpu);
        let _autocast = policy.autocast()?;
        module.forward(x, &Context::new(policy, false))
    };
    {
        let _pass = dtypes.record()?;
        assert_eq!(run(Precision::Bf16Mixed, &x)?.kind(), Kind::BFloat16);
    }
    {
        let _pass = dtypes.count()?;
        let _ = run(Precision::F32True, &x)?;
    }
    let rounded = {
        let _pass = dtypes.round()?;
        run(Precision::F32True, &x)?
    };
    let exact = run(Precision::F32True, &x)?;
    let expected = exact.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?;
    assert_eq!(bits(&rounded), bits(&expected), "only the last operation is rounded");
    Ok(())
}
