//! Finds out whether a rounding error comes from the code after the last layer, for example from a
//! user's loss.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use amp_core::{
    Result, TrainerConfig,
    nn::Substitute,
    precision::dtype_name,
    tch::{Kind, Tensor},
};

use super::{
    STEPS,
    figures::{Exact, Figures},
    steps::{Ran, Steps},
};
use crate::{reset::ResetModel, rounding::is_narrow};

/// Records the modules whose outputs go to the code after the layers: the last module, and the
/// modules that contain it. The record is cleared whenever a module receives its input. So in the
/// end it has only the modules that returned after the last module had received its input.
#[derive(Default)]
struct Last(RefCell<BTreeSet<String>>);

impl Substitute for Last {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().clear();
        Ok(input.shallow_clone())
    }

    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        self.0.borrow_mut().insert(path.to_owned());
        Ok(output.shallow_clone())
    }
}

/// Converts the 16-bit outputs of the modules with these paths to f32.
struct Widened(BTreeSet<String>);

impl Substitute for Widened {
    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        match self.0.contains(path) && is_narrow(output.kind()) {
            true => Ok(output.f_to_kind(Kind::Float)?),
            false => Ok(output.shallow_clone()),
        }
    }
}

/// Tests whether the code after the last layer causes the differences from 32-true. Runs the steps
/// twice: with the outputs of the last layers in 16 bits, and with these outputs converted to f32.
/// If `is_within` accepts the differences only in the second run, returns a sentence for the
/// report. Otherwise returns an empty text. The text is also empty if the precision does not
/// compute in 16 bits, or if a run fails. No fused kernel runs, because the tensors between the
/// layers are observed. `config` returns the trainer's options for a number of steps.
pub(super) fn blame(
    steps: &Steps<'_>,
    model: &mut ResetModel,
    exact: &Exact<'_>,
    config: impl Fn(u64) -> TrainerConfig,
    is_within: impl Fn(&Figures) -> bool,
) -> Result<String> {
    let computed = steps.precision.compute();
    if !is_narrow(computed) {
        return Ok(String::new());
    }
    let mut run = |count: u64, substitute| -> Option<Ran> {
        steps.run_substituted(model, config(count), substitute).ok()
    };
    let last = Rc::new(Last::default());
    if run(1, Rc::<Last>::clone(&last)).is_none() {
        return Ok(String::new());
    }
    let mut passes = |widened| -> Result<Option<bool>> {
        let ran = run(STEPS, Rc::new(Widened(widened)));
        ran.map(|ran| Ok(is_within(&exact.compare(&ran)?))).transpose()
    };
    let by_the_loss =
        passes(BTreeSet::new())? == Some(false) && passes(last.0.take())? == Some(true);
    Ok(match by_the_loss {
        true => format!(
            "; if the output of the last layer is converted to float32, no value exceeds its \
             bound: the loss, or other code after this layer, computes in {}: convert its input \
             with `loss::at_least_f32`",
            dtype_name(computed)
        ),
        false => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use amp_core::{precision::Precision, prelude::*};
    use rstest::rstest;

    use crate::{
        DataSet, Model, Registry,
        gate::{Task, deadline::Deadline, job::Job, waves::waves},
        length::Length,
        model, project,
        rounding::is_narrow,
    };

    /// A model that learns to rank the examples. Adding the same number to all outputs does not
    /// change the loss, so the exact gradient of the bias is 0.
    #[derive(LightningModule)]
    #[loss(with = |output, _| ranked(&if self.wide { loss::at_least_f32(output)? } else { output.shallow_clone() }))]
    #[optimizer(sgd, lr = 0.1)]
    struct Ranking {
        #[hparam(default = false)]
        wide: bool,
        #[layer(linear(4, 1))]
        head: Linear,
    }

    /// A model with an error in a 16-bit value before the last layer, and with a loss that computes
    /// in f32.
    #[derive(LightningModule)]
    #[forward(|x| {
        let hidden = hidden(x)?;
        head(&if is_narrow(hidden.kind()) { hidden.f_mul_scalar(1.05)? } else { hidden })
    })]
    #[loss(with = |output, _| ranked(&loss::at_least_f32(output)?))]
    #[optimizer(sgd, lr = 0.1)]
    struct Enlarged {
        #[layer(linear(4, 4))]
        hidden: Linear,
        #[layer(linear(4, 1))]
        head: Linear,
    }

    /// Returns the mean of −ln(share) over the examples. The share of example i with output xᵢ is
    /// exp(xᵢ), divided by the sum of exp(xⱼ) over all j ≤ i.
    fn ranked(output: &Tensor) -> Result<Tensor> {
        let share = output.f_sub(&output.f_logcumsumexp(0)?)?;
        Ok(share.f_mean(Kind::Float)?.f_neg()?)
    }

    /// Returns the texts of the failures in the first steps of the model.
    fn failures(name: &str, model: Model, precision: Precision) -> Result<Vec<String>> {
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let job = Job::new(name, precision, 3, Length::Epochs(1), Task::Conformance);
        let outcome = super::super::run(&job, &registry, &Deadline::default())?;
        Ok(outcome.failures.into_iter().map(|failure| failure.text).collect())
    }

    /// Checks that the report names the code after the last layer if this code computes in 16 bits,
    /// and that the gate accepts the same loss in f32.
    #[rstest]
    fn a_loss_in_16_bits_is_named(
        #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
        #[values(false, true)] wide: bool,
    ) -> Result<()> {
        let model = model!(Ranking).judged_by_loss().margin(1.0).batch_size(64);
        let model = model.hyperparameters(serde_json::json!({ "wide": wide }));
        let texts = failures("Ranking", model, precision)?;
        match wide {
            true => assert_eq!(texts, [""; 0]),
            false => assert!(texts[0].contains("code after this layer, computes in"), "{texts:?}"),
        }
        Ok(())
    }

    /// Checks that the report does not name the loss as the cause if the loss computes in f32, and
    /// an error before the last layer causes the differences.
    #[rstest]
    fn a_loss_in_f32_is_not_blamed(
        #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    ) -> Result<()> {
        let model = model!(Enlarged).judged_by_loss().margin(1.0).batch_size(64);
        let texts = failures("Enlarged", model, precision)?;
        assert!(texts[0].contains("differs from 32-true's by"), "{texts:?}");
        assert!(!texts.iter().any(|text| text.contains("code after")), "{texts:?}");
        Ok(())
    }
}
