//! Checks that two values that are measured for dropout fit each other: the fraction of elements
//! that dropout sets to zero, and the factor by which it scales the kept elements. For a rate p the
//! fraction is p, and the factor is 1/(1 − p).

use std::cell::RefCell;

use amp_core::{
    Result,
    nn::{Call, Probe},
    tch::{Kind, Tensor, no_grad},
};

/// The largest accepted difference, in standard errors, between the fraction of zeroed elements and
/// the dropout rate that follows from the factor.
pub(super) const CHANCE: f64 = 6.0;
/// The relative variation up to which the factors of the kept elements count as equal. The factors
/// vary because 16-bit values are rounded.
const CONSTANT: f64 = 0.01;

/// A probe (an observer of the forward pass) that recognizes dropout layers by their effect on the
/// input, and counts the elements that they set to zero.
#[derive(Default)]
pub(super) struct Counter(RefCell<Counts>);

#[derive(Default)]
struct Counts {
    /// Whether the first batch is finished. Only this batch is counted, because counting reads
    /// every element of each layer's output.
    done: bool,
    /// The number of dropout layers that were found.
    layers: u64,
    /// The largest difference, in standard errors, between the fraction of zeroed elements of a
    /// layer and the dropout rate that follows from the layer's factor.
    worst: f64,
    /// A sentence about the layer that has the largest difference.
    text: String,
    /// Whether `worst` is too large for chance.
    wrong: bool,
}

/// What a dropout layer does to the elements of its input.
struct Drops {
    /// The fraction of the nonzero elements of the input that become zero.
    share: f64,
    /// The factor by which the kept elements are multiplied.
    factor: f64,
    /// The number of nonzero elements of the input.
    elements: f64,
}

impl Counter {
    /// Ends the counting. The caller calls this after each batch, so it has an effect only after
    /// the first.
    pub(super) fn end(&self) {
        self.0.borrow_mut().done = true;
    }

    /// Returns the number of dropout layers, and the largest difference, in standard errors,
    /// between the fraction of zeroed elements and the dropout rate. If this difference is too
    /// large, also returns a sentence about the layer.
    pub(super) fn found(&self) -> (u64, f64, Option<String>) {
        let counts = self.0.borrow();
        (counts.layers, counts.worst, counts.wrong.then(|| counts.text.clone()))
    }

    fn count(&self, call: &Call<'_>) -> Result<()> {
        if self.0.borrow().done || call.input.size() != call.output.size() {
            return Ok(());
        }
        let Some(Drops { share, factor, elements }) = drops(call.input, call.output)? else {
            return Ok(());
        };
        let rate = 1.0 - 1.0 / factor;
        let deviation = (share * (1.0 - share) / elements).sqrt();
        // Subtracts the error that the rate may have because `factor` is computed from rounded
        // values.
        let away = ((share - rate).abs() - CONSTANT * rate.max(0.0)).max(0.0) / deviation;
        let mut counts = self.0.borrow_mut();
        counts.layers += 1;
        if away > counts.worst {
            counts.worst = away;
            counts.wrong = away > CHANCE;
            counts.text = format!(
                "`{}` drops {:.1} % of its input, but scales the rest by {factor:.3}, as for a \
                 rate of {:.1} %",
                call.path,
                100.0 * share,
                100.0 * rate
            );
        }
        Ok(())
    }
}

impl Probe for Counter {
    fn ran(&self, call: &Call<'_>) {
        // Ignores errors. If counting fails for a layer, for example because of its shapes, the
        // layer does not count as dropout.
        let _ = no_grad(|| self.count(call));
    }
}

/// Returns the effect of a layer if it looks like dropout: some elements become zero, and all other
/// elements are multiplied by the same factor. Returns `None` for any other layer.
fn drops(input: &Tensor, output: &Tensor) -> Result<Option<Drops>> {
    let (input, output) = (input.f_to_kind(Kind::Double)?, output.f_to_kind(Kind::Double)?);
    let number = |tensor: Tensor| -> Result<f64> { Ok(tensor.f_double_value(&[])?) };
    let present = input.f_ne(0.0)?;
    let dropped = present.f_logical_and(&output.f_eq(0.0)?)?;
    let kept = present.f_logical_and(&output.f_ne(0.0)?)?;
    let count = |mask: &Tensor| number(mask.f_sum(Kind::Double)?);
    let (zeros, others) = (count(&dropped)?, count(&kept)?);
    // If only negative elements become zero, the layer is a ReLU.
    let positive = count(&dropped.f_logical_and(&input.f_gt(0.0)?)?)?;
    if zeros < 16.0 || others < 16.0 || positive == 0.0 {
        return Ok(None);
    }
    let factors = output.f_div(&input)?.f_masked_select(&kept)?;
    let (least, most) = (number(factors.f_min()?)?, number(factors.f_max()?)?);
    let factor = number(factors.f_mean(Kind::Double)?)?;
    let elements = zeros + others;
    let is_constant = most - least <= CONSTANT * factor.abs() && factor > 0.0;
    Ok(is_constant.then_some(Drops { share: zeros / elements, factor, elements }))
}

#[cfg(test)]
mod tests {
    use amp_core::{
        nn::{Context, Dropout, Module, Op},
        precision::{Policy, Precision, RegionPlan},
        random,
        tch::Device,
    };

    use super::*;

    fn counted(output: &Tensor, input: &Tensor) -> (u64, Option<String>) {
        let counter = Counter::default();
        let rerun = |other: &Tensor| Ok(other.shallow_clone());
        counter.ran(&Call {
            path: "net.drop",
            op: Op::Other,
            plan: RegionPlan::of(Precision::F32True),
            input,
            output,
            rerun: &rerun,
            rerun_with: &|other, _| rerun(other),
        });
        let (layers, _, wrong) = counter.found();
        (layers, wrong)
    }

    /// Checks that the library's dropout is found and passes, that dropout with a wrong factor or
    /// without a factor is reported, and that a ReLU is not taken for dropout.
    #[test]
    fn a_dropout_rate_that_contradicts_its_factor_is_reported() -> Result<()> {
        let _section = random::seeded(3)?;
        let input = Tensor::randn([128, 128], (Kind::Float, Device::Cpu));
        let context = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
        let output = Dropout::new(0.2)?.forward(&input, &context)?;
        assert_eq!(counted(&output, &input), (1, None));
        let (layers, wrong) = counted(&(&output * 1.1), &input);
        assert!(layers == 1 && wrong.is_some_and(|text| text.contains("`net.drop` drops")));
        assert!(counted(&(&output * 0.8), &input).1.is_some(), "without a factor");
        assert_eq!(counted(&input.relu(), &input), (0, None));
        assert_eq!(counted(&(&input * 2.0), &input), (0, None));
        Ok(())
    }
}
