//! Early stopping: the logged value that a run monitors, and which of its values are better.

use amp_core::{
    Error, LightningModule, Result,
    callback::{EarlyStopping, Mode},
};

use crate::registry::{Judge, Model};

/// The patience of early stopping if neither the registry nor the user gives one.
const PATIENCE: u32 = 3;

/// What early stopping monitors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// The name of the logged value.
    pub monitor: String,
    /// Whether smaller or larger values are better. `None` if this is unknown.
    pub mode: Option<Mode>,
    /// The number of epochs without improvement after which training ends.
    pub patience: u32,
}

impl Stopping {
    /// Returns what early stopping monitors, or `None` without early stopping. The user's choices
    /// replace those of the registry. If the user chooses another logged value but no patience, the
    /// patience is [`PATIENCE`], because the registry's patience is for the registry's value. The
    /// mode is `None` if it is not part of the name, as in `val_f1:max`.
    pub(crate) fn chosen(
        model: &Model,
        monitor: Option<&str>,
        patience: Option<u32>,
    ) -> Result<Option<Self>> {
        let own =
            model.early_stopping.as_ref().map(|(name, patience)| Self::named(name, *patience));
        let chosen = monitor.map(|name| Self::named(name, PATIENCE));
        let stopping = match (chosen, own) {
            (Some(chosen), Some(own)) if chosen.monitor == own.monitor => {
                Some(Self { mode: chosen.mode.or(own.mode), ..own })
            }
            (chosen, own) => chosen.or(own),
        };
        match (stopping, patience) {
            (Some(stopping), patience) => {
                Ok(Some(Self { patience: patience.unwrap_or(stopping.patience), ..stopping }))
            }
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::config(format!(
                "--patience has no effect, because `{}` does not stop early: add --early-stopping \
                 NAME",
                model.name
            ))),
        }
    }

    /// Reads `name`, which may end in a mode, as in `val_f1:max`.
    fn named(name: &str, patience: u32) -> Self {
        let (monitor, mode) = match name.rsplit_once(':') {
            Some((monitor, "min")) => (monitor, Some(Mode::Min)),
            Some((monitor, "max")) => (monitor, Some(Mode::Max)),
            _ => (name, None),
        };
        Self { monitor: monitor.to_owned(), mode, patience }
    }

    /// Sets the mode, unless the name contains it: that of the metric by which the model is judged,
    /// or of a metric that the model declares. Smaller losses are better.
    pub(crate) fn find_mode(&mut self, judge: Judge, model: &dyn LightningModule) {
        // `val_acc/rare` is the accuracy on the validation set `rare`.
        let value = self.monitor.split('/').next().unwrap_or_default();
        let of_judge = || (judge.name == value).then(|| judge.direction.mode());
        let of_loss = || value.ends_with("loss").then_some(Mode::Min);
        self.mode =
            self.mode.or_else(of_judge).or_else(|| model.metric_mode(value)).or_else(of_loss);
    }

    /// Returns the callback that ends the run.
    ///
    /// # Errors
    /// When it is unknown which values are better.
    pub fn callback(&self) -> Result<EarlyStopping> {
        let Self { monitor, mode, patience } = self;
        let Some(mode) = mode else {
            return Err(Error::config(format!(
                "early stopping by `{monitor}`: it is unknown whether larger or smaller values are \
                 better: write `{monitor}:max` or `{monitor}:min`"
            )));
        };
        Ok(EarlyStopping::new(monitor, *mode).patience(*patience))
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{
        Result,
        metric::{Metric, MetricState},
        prelude::*,
    };
    use rstest::rstest;

    use super::*;
    use crate::model;

    /// A metric of which it is unknown whether larger values are better.
    struct Own;

    impl Metric for Own {
        fn update(&self, output: &Tensor, _: &Tensor) -> Result<MetricState> {
            MetricState::mean(&output.f_sum(Kind::Double)?, 1.0)
        }
    }

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[metric(mae, stage = val)]
    #[metric(r2, name = fit)]
    #[metric(with = Own, name = own)]
    #[optimizer(adamw, lr = 1e-3)]
    struct Net {
        #[layer(linear(4, 1))]
        head: Linear,
    }

    fn declared() -> Model {
        model!(Net).early_stopping("val_loss", 5)
    }

    /// Checks that the user's choices of the logged value and of the patience replace the values
    /// that the registry declares.
    #[rstest]
    #[case::declared(declared(), None, None, Some(("val_loss", 5)))]
    #[case::other_patience(declared(), None, Some(1), Some(("val_loss", 1)))]
    #[case::same_value(declared(), Some("val_loss"), None, Some(("val_loss", 5)))]
    #[case::other_value(declared(), Some("val_acc"), None, Some(("val_acc", 3)))]
    #[case::both(declared(), Some("val_acc"), Some(2), Some(("val_acc", 2)))]
    #[case::chosen(model!(Net), Some("val_acc"), Some(2), Some(("val_acc", 2)))]
    #[case::none(model!(Net), None, None, None)]
    fn a_choice_replaces_the_declared_early_stopping(
        #[case] model: Model,
        #[case] monitor: Option<&str>,
        #[case] patience: Option<u32>,
        #[case] expected: Option<(&str, u32)>,
    ) -> Result<()> {
        let found = Stopping::chosen(&model, monitor, patience)?;
        let found = found.as_ref().map(|own| (own.monitor.as_str(), own.patience));
        assert_eq!(found, expected);
        Ok(())
    }

    #[test]
    fn a_patience_without_early_stopping_is_refused() {
        let refused = Stopping::chosen(&model!(Net), None, Some(2));
        let said = refused.expect_err("an error").to_string();
        assert!(said.contains("`Net` does not stop early: add --early-stopping"), "{said}");
    }

    /// Checks from where the direction of a monitored value is taken. A value of unknown direction
    /// is refused.
    #[rstest]
    #[case::loss("val_loss", Some(Mode::Min))]
    #[case::loss_of_a_set("val_loss/rare", Some(Mode::Min))]
    #[case::error("val_mae", Some(Mode::Min))]
    #[case::score("val_fit", Some(Mode::Max))]
    #[case::of_training("train_fit", Some(Mode::Max))]
    #[case::of_a_set("val_fit/rare", Some(Mode::Max))]
    #[case::not_declared_for_training("train_mae", None)]
    #[case::judge("val_quality", Some(Mode::Max))]
    #[case::own("val_own", None)]
    #[case::own_with_mode("val_own:max", Some(Mode::Max))]
    #[case::choice_wins("val_fit:min", Some(Mode::Min))]
    fn a_monitored_value_has_its_direction(
        #[case] name: &str,
        #[case] mode: Option<Mode>,
    ) -> Result<()> {
        let model = model!(Net).score("val_quality");
        let mut stopping = Stopping::chosen(&model, Some(name), None)?.expect("a choice");
        let net = model.build(&model.hyperparameters)?;
        stopping.find_mode(model.judge, net.as_ref());
        assert_eq!(stopping.mode, mode);
        match (stopping.callback(), mode) {
            (Ok(_), Some(_)) => {}
            (Err(error), None) => {
                let said = error.to_string();
                assert!(said.contains(&format!("write `{name}:max` or `{name}:min`")), "{said}");
            }
            (callback, _) => panic!("{callback:?} for {mode:?}"),
        }
        Ok(())
    }
}
