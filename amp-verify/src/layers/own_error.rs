//! Measures the own error of each 16-bit layer: the error that the layer makes when its inputs come
//! from a 64-true step, and so have no errors from earlier layers. This error is compared with the
//! error that rounding alone causes: the error of the same layer in 64-true with rounded parameters
//! and rounded results. The comparison reveals three faults: the layer rounds too often, it
//! computes in a wider dtype and casts back, or it first rounds to fewer digits than its dtype has.

use amp_core::{
    Result,
    nn::Op,
    tch::{Kind as Dtype, Tensor},
};

use super::{
    Kind, error,
    measure::{OF_ROUNDED, ON_ROUNDED, Passes},
};
use crate::{
    exponents::Format,
    rounding::{is_narrow, rounded, rounding_of},
    scalars,
    verdict::{CONFIDENCE, RISK, count_limit},
};

/// What was measured when a layer ran separately on the inputs of a 64-true step, so that all
/// errors are made by the layer itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// The path of the layer, as in [`Layer`](super::Layer).
    pub path: String,
    /// The layer's own error, divided by the error that rounding its parameters and results causes.
    /// Of the quotients of the forward and the backward pass, this is the larger one. `None` if
    /// both errors are 0. Infinite if only the error of rounding is 0.
    pub error: Option<f64>,
    /// The kinds of results that the layer computes in a wider dtype and then casts to 16 bits.
    pub wide: Vec<Kind>,
    /// The kinds of f16 tensors whose values have only as many significant digits as bf16, because
    /// they were first rounded to bf16.
    pub twice: Vec<Kind>,
    /// How many values became zero, infinite or NaN although the layer's dtype can represent them.
    /// Of the counts for the forward and the backward pass, this is the one that is larger relative
    /// to its bound.
    pub lost: Lost,
}

/// How many values a layer turned into zero, infinity or NaN although its dtype can represent them,
/// and how many such values rounding alone can explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// The number of values that became zero, infinite or NaN. Equal values count as one, because
    /// they have the same cause.
    pub found: u64,
    /// The number of such values that rounding alone can explain: the largest accepted `found`.
    pub bound: u64,
}

impl Lost {
    /// Returns the number of lost values divided by its bound.
    pub fn over_bound(self) -> f64 {
        self.found as f64 / self.bound.max(1) as f64
    }
}

/// The largest accepted own error of a layer, in multiples of the error of rounding its parameters
/// and results once. It is above 1, because some layers round several times inside.
pub const WITHIN: f64 = 3.0;
/// Decides whether a layer computes in a wider dtype, with unrounded parameters. The reference is
/// the layer's output in 64-true, rounded to the layer's dtype. Rounding the parameters first
/// changes n elements of the reference. The layer's actual output differs from the reference in m
/// elements. If the layer rounds its parameters, m is about n. If `FEWER`·m < n, the layer counts
/// as computing in a wider dtype.
const FEWER: f64 = 4.0;
/// If rounding the parameters changes fewer elements of the output than this number, the layer does
/// not count as computing in a wider dtype.
const LEAST_DIFFERING: f64 = 40.0;
/// An f16 tensor counts as first rounded to bf16 if bf16 can represent at least this fraction of
/// its elements exactly.
const ALL: f64 = 0.99;
/// The tensor is not checked for rounding to bf16 if bf16 can represent more than this fraction of
/// the elements of the 64-true tensor exactly, after they are rounded to f16.
const BY_CHANCE: f64 = 0.75;
/// Rounding may turn a value into zero if the errors of all roundings before the last one can add
/// up to this fraction of the value. The last rounding changes the value by at most half of the
/// dtype's smallest positive number. Only values of at least four times this number are counted, so
/// the last rounding changes them by at most 1/8. The other 7/8 must come from the earlier
/// roundings.
const LOSES: f64 = 7.0 / 8.0;
/// A tensor with fewer finite nonzero elements than this is not checked for rounding to bf16.
const LEAST_ELEMENTS: usize = 64;

impl Own {
    /// Returns whether the own error of the layer is larger than rounding explains.
    pub fn is_beyond(&self) -> bool {
        self.error.is_some_and(|error| error.is_nan() || error > WITHIN)
    }
}

impl Passes {
    /// Measures the own error of each layer with 16-bit results in this part of the model.
    pub(super) fn own(&self) -> Result<Vec<Own>> {
        let mut all = Vec::new();
        // `RISK` is the accepted probability that at least one 16-bit layer fails this check
        // although all layers are correct. It is divided equally among the outputs and the input
        // gradients of these layers.
        let layers = self.actual.calls.iter().filter(|call| is_narrow(call.output.kind())).count();
        let risk = RISK / (2 * layers.max(1)) as f64;
        for at in self.places().filter(|at| is_narrow(self.actual.calls[*at].output.kind())) {
            let mut own = Own {
                path: self.actual.calls[at].path.clone(),
                error: None,
                wide: Vec::new(),
                twice: Vec::new(),
                lost: Lost::default(),
            };
            // The gradients of parameters are not checked, because they are sums over a batch, and
            // some kernels round partial sums to 16 bits.
            for kind in [Kind::Forward, Kind::InputGradient] {
                let Some(values) = self.otherwise(at, kind)? else { continue };
                if let Some(error) = values.error()? {
                    own.error = Some(own.error.map_or(error, |other: f64| other.max(error)));
                }
                let lost = values.lost(self.actual.calls[at].output.kind(), risk)?;
                if lost.over_bound() > own.lost.over_bound() || own.lost.bound == 0 {
                    own.lost = lost;
                }
                let is_product = self.actual.calls[at].op == Op::Matmul;
                if is_product && values.is_wide()? {
                    own.wide.push(kind);
                }
            }
            own.twice = self.twice(at)?;
            all.push(own);
        }
        Ok(all)
    }

    fn otherwise(&self, at: usize, kind: Kind) -> Result<Option<Otherwise>> {
        let (actual, alone) = (&self.actual.calls[at], &self.alone.calls[at]);
        let scale = if kind == Kind::Forward { 1.0 } else { 2.0_f64.powi(self.log2_scale) };
        let to = actual.output.kind();
        let in_16_bits =
            |tensor: &Tensor| -> Result<Tensor> { rounded(&tensor.f_mul_scalar(scale)?, to) };
        let (Some(found), Some(exact)) =
            (actual.reruns[0].tensor(kind), alone.reruns[ON_ROUNDED].tensor(kind))
        else {
            return Ok(None);
        };
        let others = alone.reruns[OF_ROUNDED..].iter().filter_map(|rerun| rerun.tensor(kind));
        let others = others.map(|other| in_16_bits(&other)).collect::<Result<Vec<_>>>()?;
        Ok(Some(Otherwise {
            found: found.f_mul_scalar(scale)?,
            rounded: in_16_bits(&exact)?,
            exact: exact.f_mul_scalar(scale)?,
            others,
        }))
    }

    /// Returns which f16 tensors have values that bf16 can represent, unlike those of 64-true: the
    /// input or output (`Forward`), or the gradient of the output (`InputGradient`).
    fn twice(&self, at: usize) -> Result<Vec<Kind>> {
        let (actual, reference) = (&self.actual.calls[at], &self.reference.calls[at]);
        let scale = 2.0_f64.powi(self.log2_scale);
        let mut found = Vec::new();
        let pairs = [
            (Kind::Forward, Some((&actual.input, &reference.input)), 1.0),
            (Kind::Forward, Some((&actual.output, &reference.output)), 1.0),
            (
                Kind::InputGradient,
                actual.output_gradient.as_ref().zip(reference.output_gradient.as_ref()),
                scale,
            ),
        ];
        for (kind, pair, scale) in pairs {
            let Some((own, exact)) = pair else { continue };
            let dtype = if kind == Kind::Forward { own.kind() } else { actual.output.kind() };
            if dtype != Dtype::Half || found.contains(&kind) {
                continue;
            }
            let expected = rounded(&exact.f_mul_scalar(scale)?, Dtype::Half)?;
            if share_of_bf16(own)?.is_some_and(|share| share >= ALL)
                && share_of_bf16(&expected)?.is_some_and(|share| share <= BY_CHANCE)
            {
                found.push(kind);
            }
        }
        Ok(found)
    }
}

/// Returns the fraction of the finite nonzero elements that bf16 can represent exactly. Returns
/// `None` if there are too few such elements.
fn share_of_bf16(tensor: &Tensor) -> Result<Option<f64>> {
    let tensor = tensor.f_to_kind(Dtype::Float)?.f_contiguous()?;
    let present = tensor.f_ne(0.0)?.f_logical_and(&tensor.f_isfinite()?)?;
    let bits = tensor.f_view_dtype(Dtype::Int)?.f_masked_select(&present)?;
    if bits.numel() < LEAST_ELEMENTS {
        return Ok(None);
    }
    let low = bits.f_bitwise_and(0xFFFF)?.f_eq(0)?.f_to_kind(Dtype::Double)?;
    Ok(Some(low.f_mean(Dtype::Double)?.f_double_value(&[])?))
}

/// Counts the different values of a tensor. Values that are equal in f32 count once, because equal
/// examples give equal values.
fn distinct(values: &Tensor) -> Result<u64> {
    // Unlike `f_unique_dim`, this function does not create a tensor for each value.
    let (different, ..) = values.f_to_kind(Dtype::Float)?.f_internal_unique2(true, false, false)?;
    Ok(different.numel() as u64)
}

/// One kind of tensor of a layer (its output or a gradient), computed in several ways. Gradients
/// are multiplied by the loss scale.
struct Otherwise {
    /// The layer's results under the precision.
    found: Tensor,
    /// The results of the layer in 64-true, on the same inputs.
    exact: Tensor,
    /// `exact`, rounded to the layer's dtype.
    rounded: Tensor,
    /// The results of the layer in 64-true with rounded parameters, rounded to the layer's dtype.
    /// For the first result, the parameters are rounded to nearest. For the other results, they are
    /// rounded stochastically.
    others: Vec<Tensor>,
}

impl Otherwise {
    /// Returns the layer's error, divided by the error that rounding parameters and results causes.
    fn error(&self) -> Result<Option<f64>> {
        let all = std::iter::once(&self.found).chain(&self.others);
        let squares = all.map(|found| error::mean_square_error(found, &self.exact));
        let mut roots = error::roots(&squares.collect::<Result<Vec<_>>>()?)?.into_iter();
        let own = roots.next().flatten().unwrap_or(f64::INFINITY);
        let expected: Vec<f64> = roots.flatten().collect();
        let expected = expected.iter().sum::<f64>() / expected.len() as f64;
        // If nothing is rounded, `expected` is 0, so any error gives infinity.
        Ok((expected > 0.0 || own > 0.0).then(|| own / expected))
    }

    /// Counts the lost values: values well within the range of the dtype that became zero, infinite
    /// or NaN. Rounding alone can lose a value only if the rounding error is about as large as the
    /// value. The results of 64-true with rounded parameters show how many values rounding can
    /// lose. The bound is a statistical upper limit (a tolerance limit) for this number.
    fn lost(&self, to: Dtype, risk: f64) -> Result<Lost> {
        let Some(format) = Format::of(to) else { return Ok(Lost::default()) };
        let power = |exponent: i32| 2.0_f64.powi(exponent);
        let (least, most) =
            (power(format.min_subnormal_exponent() + 2), power(format.max_exponent()));
        let size = self.exact.f_abs()?;
        let held = size.f_ge(least)?.f_logical_and(&size.f_le(most)?)?;
        // `inside` is the error of one rounding inside the layer, of a value that is as large as
        // the root mean square of the layer's results.
        let squares = size.f_square()?.f_masked_fill(&held.f_logical_not()?, 0.0)?;
        let rms = squares.f_mean(Dtype::Double)?.f_sqrt()?;
        let (inside, reached) = (rms.f_mul_scalar(rounding_of(to))?, size.f_mul_scalar(LOSES)?);
        let not_finite =
            |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_isfinite()?.f_logical_not()?) };
        let within_reach = |other: &Tensor| -> Result<Tensor> {
            let error = other.f_sub(&self.exact)?.f_abs()?.f_maximum(&inside)?;
            let reach = error.f_mul_scalar(WITHIN)?;
            Ok(reach.f_ge_tensor(&reached)?.f_logical_or(&not_finite(other)?)?)
        };
        let gone = self.found.f_eq(0.0)?.f_logical_or(&not_finite(&self.found)?)?;
        let mut all = vec![gone];
        all.extend(self.others.iter().map(within_reach).collect::<Result<Vec<_>>>()?);
        let mut counts = Vec::new();
        for of in all {
            counts.push(distinct(&self.exact.f_masked_select(&of.f_logical_and(&held)?)?)?);
        }
        let (found, seen) = (counts[0], counts[1..].iter().sum());
        Ok(Lost { found, bound: count_limit(seen, self.others.len(), risk, CONFIDENCE) })
    }

    /// Returns whether the layer computes in a wider dtype: nearly all of its results equal those
    /// of 64-true with unrounded parameters, although rounding the parameters changes many results.
    fn is_wide(&self) -> Result<bool> {
        let differing = |other: &Tensor| -> Result<Tensor> {
            Ok(other.f_ne_tensor(&self.rounded)?.f_sum(Dtype::Int64)?)
        };
        let Some(nearest) = self.others.first() else { return Ok(false) };
        let [expected, own] = scalars::read_all([differing(nearest)?, differing(&self.found)?])?;
        Ok(expected >= LEAST_DIFFERING && FEWER * own < expected)
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{random, tch::Device};
    use rstest::rstest;

    use super::*;
    use crate::rounding::rounded_stochastically;

    /// Returns the results of a linear layer in f16 whose 64 inputs have the standard deviation
    /// `size`. If `rounds` is true, the layer uses rounded parameters, and otherwise unrounded
    /// ones.
    fn product(rounds: bool, size: f64) -> Result<Otherwise> {
        let _section = random::seeded(11)?;
        let draw = |rows: i64| Tensor::randn([rows, 64], (Dtype::Double, Device::Cpu));
        let input = rounded(&(draw(128) * size), Dtype::Half)?;
        let (weight, bias) = (draw(64), draw(1));
        let of = |how: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Tensor> {
            Ok(input.f_matmul(&how(&weight)?.f_tr()?)?.f_add(&how(&bias)?)?)
        };
        let nearest = |tensor: &Tensor| rounded(tensor, Dtype::Half);
        let otherwise = |tensor: &Tensor| rounded_stochastically(tensor, Dtype::Half);
        let exact = of(&|tensor| Ok(tensor.shallow_clone()))?;
        let found = nearest(&if rounds { of(&nearest)? } else { exact.shallow_clone() })?;
        let others = vec![nearest(&of(&nearest)?)?, nearest(&of(&otherwise)?)?];
        Ok(Otherwise { found, rounded: nearest(&exact)?, exact, others })
    }

    #[rstest]
    #[case::rounded(true, false)]
    #[case::wide(false, true)]
    fn a_product_of_weights_that_are_not_rounded_is_wide(
        #[case] rounds: bool,
        #[case] is_wide: bool,
    ) -> Result<()> {
        let values = product(rounds, 1.0)?;
        assert_eq!(values.is_wide()?, is_wide);
        let error = values.error()?.expect("weights are rounded");
        assert!(error < 1.1 && (error > 0.85) == rounds, "{error}");
        // If the inputs are 0, the output is the rounded bias, with and without rounded parameters.
        // So computing in a wider dtype cannot be detected.
        assert!(!product(rounds, 0.0)?.is_wide()?);
        Ok(())
    }

    /// Checks which values count as lost: f16 numbers that become zero or infinite, but not values
    /// that are too small for f16. Equal values count once.
    #[rstest]
    #[case::rounded(1.0, 4096, |tensor: &Tensor| tensor.shallow_clone(), 0)]
    #[case::flushed(1.0 / 65536.0, 4096, |tensor: &Tensor| tensor * tensor.abs().ge(2.0_f64.powi(-14)), 4096)]
    #[case::overflown(1.0, 4096, |tensor: &Tensor| tensor / 0.0, 4096)]
    #[case::equal(1.0, 4, |tensor: &Tensor| tensor * 0.0, 4)]
    #[case::too_small(2.0_f64.powi(-40), 4096, |tensor: &Tensor| tensor * 0.0, 0)]
    fn values_that_the_dtype_holds_are_kept(
        #[case] size: f64,
        #[case] different: i64,
        #[case] lose: fn(&Tensor) -> Tensor,
        #[case] expected: u64,
    ) -> Result<()> {
        let _section = random::seeded(13)?;
        let drawn = Tensor::randn([different], (Dtype::Double, Device::Cpu)) * size;
        let exact = drawn.repeat([4096 / different]);
        let nearest = rounded(&exact, Dtype::Half)?;
        let found = lose(&nearest);
        let others = (0..4).map(|_| nearest.shallow_clone()).collect();
        let values = Otherwise { found, rounded: nearest, exact, others };
        let lost = values.lost(Dtype::Half, 1e-7)?;
        // A few of the random numbers are not counted, because they are too small for f16 or equal
        // to another one in f32.
        assert!(lost.found.abs_diff(expected) <= expected / 50, "{lost:?}");
        assert_eq!(lost.over_bound() > 1.0, expected > 100, "{lost:?}");
        Ok(())
    }

    /// Checks that the bound is computed from the number of values that rounding alone may turn
    /// into zero. These are the values below `WITHIN`/`LOSES` = 3·8/7 times the rounding error. The
    /// rounding error is the one that rounded parameters cause (the case `parameters`), or, if it
    /// is larger, the error of rounding a value as large as the root mean square (the case
    /// `inside`).
    #[rstest]
    #[case::inside(0.0, 2.0_f64.powi(-11))]
    #[case::parameters(0.01, 0.01)]
    fn the_bound_counts_the_values_that_rounding_may_lose(
        #[case] error: f64,
        #[case] reach: f64,
    ) -> Result<()> {
        let _section = random::seeded(14)?;
        let exact = Tensor::randn([65_536], (Dtype::Double, Device::Cpu));
        let nearest = rounded(&exact, Dtype::Half)?;
        let others = (0..4).map(|_| &exact + error).collect();
        let found = &nearest * exact.abs().ge(3.0 * 8.0 / 7.0 * reach);
        let values = Otherwise { found, rounded: nearest, exact, others };
        let lost = values.lost(Dtype::Half, 1e-7)?;
        // The density of the standard normal distribution at 0 is 0.4. So the fraction of the
        // values between −x and x is about 0.8·x for a small x.
        let expected = 65_536.0 * 0.8 * 3.0 * 8.0 / 7.0 * reach;
        assert!((lost.found as f64 / expected - 1.0).abs() < 0.1, "{lost:?}, not {expected}");
        assert_eq!(lost.bound, count_limit(4 * lost.found, 4, 1e-7, 0.95));
        Ok(())
    }

    /// Checks the fraction of numbers that bf16 can represent exactly. The fraction is 1/8 for
    /// random f16 numbers, whose last three bits are zero by chance, and 1 for numbers that were
    /// rounded to bf16. Zeros, infinities and fewer than 64 values give no result.
    #[test]
    fn digits_are_counted() -> Result<()> {
        let _section = random::seeded(12)?;
        let drawn = Tensor::randn([4096], (Dtype::Float, Device::Cpu));
        let half = rounded(&drawn, Dtype::Half)?;
        let share = share_of_bf16(&half)?.expect("there are enough");
        assert!((share - 0.125).abs() < 0.03, "{share}: three binary digits are zero by chance");
        assert_eq!(share_of_bf16(&rounded(&half, Dtype::BFloat16)?)?, Some(1.0));
        for few in [half.zeros_like(), half.full_like(f64::INFINITY), half.narrow(0, 0, 63)] {
            assert_eq!(share_of_bf16(&few)?, None);
        }
        Ok(())
    }
}
