//! Decides whether a training run has failed.

use amp_core::{Error, Result, log::Logged, record::RunRecord};

/// Returns an error if the run skipped every step, or if its result is not finite.
pub(super) fn check_finite(record: &RunRecord) -> Result<()> {
    let advice = "lower the learning rate, or choose how steps with non-finite gradients are \
                  handled (--on-non-finite)";
    if let Some(Logged { name, value, .. }) = record.not_finite().first() {
        let advice = match has_finite_training(record) {
            true => {
                "training was finite, and so are all weights: check the validation data and its \
                 targets (NaN, or no target that counts), and how the value is computed (a \
                 logarithm or a division)"
            }
            false => advice,
        };
        return Err(Error::NonFinite(format!(
            "`{name}` is {value} after the last epoch: {advice}"
        )));
    }
    match (record.end.global_step, record.end.skipped) {
        (0, skipped) if skipped > 0 => {
            Err(Error::NonFinite(format!("all {skipped} steps were skipped: {advice}")))
        }
        _ => Ok(()),
    }
}

/// Returns whether training cannot be the cause of a result that is not finite: no step was
/// skipped, and the last training loss and all weights are finite.
fn has_finite_training(record: &RunRecord) -> bool {
    record.end.skipped == 0
        && record.has_finite_weights == Some(true)
        && record.last("train_loss").is_none_or(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use amp_core::{
        Result,
        data::DataModule,
        metric::{Metric, MetricState},
        prelude::*,
        trainer::{NonFinite, RecoveryConfig},
    };
    use rstest::rstest;
    use serde_json::json;

    use super::check_finite;
    use crate::{
        DataSet, Model, Registry,
        case::{Case, Choices},
        model, project,
        runner::{self, Extras},
    };

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = self.learning_rate)]
    struct Net {
        #[hparam(default = 0.1)]
        learning_rate: f64,
        #[layer(linear(2, 1))]
        head: Linear,
    }

    /// A metric that takes the logarithm of negative numbers.
    struct Logarithm;

    impl Metric for Logarithm {
        fn update(&self, _: &Tensor, target: &Tensor) -> Result<MetricState> {
            MetricState::mean(&target.f_neg()?.f_log()?.f_sum(Kind::Double)?, 1.0)
        }
    }

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[metric(with = Logarithm, name = log, stage = val)]
    #[optimizer(sgd, lr = 0.1)]
    struct Measured {
        #[layer(linear(2, 1))]
        head: Linear,
    }

    #[derive(LightningModule)]
    #[loss(cross_entropy)]
    #[optimizer(sgd, lr = 0.1)]
    struct Classifier {
        #[layer(linear(2, 3))]
        head: Linear,
    }

    fn numbers(value: f64) -> Result<Batch> {
        let full = |width| Tensor::f_full([16, width], value, (Kind::Float, Device::Cpu));
        Batch::new(full(2)?, full(1)?)
    }

    fn classes(class: i64) -> Result<Batch> {
        let target = Tensor::f_full([16], class, (Kind::Int64, Device::Cpu))?;
        Batch::new(Tensor::f_ones([16, 2], (Kind::Float, Device::Cpu))?, target)
    }

    const FINITE: &str = "training was finite, and so are all weights: check the validation data";

    /// If training was finite, the learning rate is not the cause of a NaN in validation.
    #[rstest]
    #[case::data(model!(Net), [numbers(1.0), numbers(f64::NAN)], "val_loss", FINITE)]
    #[case::ignored_targets(model!(Classifier), [classes(1), classes(-100)], "val_loss", FINITE)]
    #[case::own_metric(model!(Measured), [numbers(1.0), numbers(1.0)], "val_log", FINITE)]
    #[case::diverged(
        model!(Net).hyperparameters(json!({ "learning_rate": 1e30 })),
        [numbers(1.0), numbers(1.0)],
        "val_loss",
        "lower the learning rate"
    )]
    fn the_cause_is_named(
        #[case] model: Model,
        #[case] parts: [Result<Batch>; 2],
        #[case] name: &str,
        #[case] cause: &str,
    ) -> Result<()> {
        let [train, val] = parts;
        let data = DataModule::new("some", train?, val?, 4);
        let some = DataSet::new("some", move |_| Ok(data.clone()));
        let model = model.judged_by_loss().batch_size(4).epochs(3);
        let registry = Registry::new(project!()).data_set(some).model(model);
        let recovery =
            RecoveryConfig { on_non_finite: NonFinite::Ignore, ..RecoveryConfig::default() };
        let choices = Choices { recovery, ..Choices::default() };
        let case = Case::new(&registry, registry.find(None)?, choices, Device::Cpu)?;
        let extras = Extras { is_compared: false, ..Extras::default() };
        let record = runner::run(&case, Precision::F32True, extras, &mut |_: &_| Ok(()))?;
        let said = check_finite(&record).expect_err("not finite").to_string();
        let expected = format!("`{name}` is NaN after the last epoch: {cause}");
        assert!(said.contains(&expected), "{said}");
        Ok(())
    }
}
