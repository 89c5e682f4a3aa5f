//! A registered model: how it is built, trained and judged.

mod length;

use std::{fmt, sync::Arc};

use amp_core::{
    Error, Hyperparameters, LightningModule, Result,
    data::Limit,
    random,
    trainer::{Averaging, Freeze},
};
use serde_json::Value;

#[cfg(feature = "cli")]
use super::Twin;
use super::{Judge, Registry};
#[cfg(feature = "cli")]
use crate::faults::Fault;
use crate::length::Length;

/// A function that builds a model from hyperparameters. The initial weights come from libtorch's
/// global random generator.
pub type Build = dyn Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + Send + Sync;

/// A registered model: its name, and how it is built, trained and judged.
///
/// [`model!`](crate::model!) creates a `Model` from a struct that derives `LightningModule`. The
/// documentation of each method that sets a value states the default.
#[derive(Clone)]
pub struct Model {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    data: Option<&'static str>,
    pub(crate) length: Length,
    quick: Option<Length>,
    pub(crate) limit_train_batches: Limit,
    pub(crate) limit_val_batches: Limit,
    pub(crate) batch_size: i64,
    pub(crate) judge: Judge,
    pub(crate) margin: Option<f64>,
    pub(crate) learns_by: Option<f64>,
    pub(crate) gradient_clip_val: Option<f64>,
    pub(crate) accumulate_grad_batches: i64,
    pub(crate) freeze: Vec<Freeze>,
    pub(crate) averaging: Option<Averaging>,
    pub(crate) early_stopping: Option<(String, u32)>,
    pub(crate) profile_every_n_steps: Option<i64>,
    pub(crate) hyperparameters: Hyperparameters,
    pub(crate) is_hidden: bool,
    #[cfg(feature = "cli")]
    faults: Vec<Fault>,
    #[cfg(feature = "cli")]
    planted_layer: Option<&'static str>,
    #[cfg(feature = "cli")]
    twin: Option<Twin>,
    pub(crate) build: Arc<Build>,
}

impl Model {
    /// Registers a model under the name `name`. `build` creates the model from hyperparameters.
    pub fn new(
        name: &'static str,
        build: impl Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            about: String::new(),
            data: None,
            length: Length::Epochs(10),
            quick: None,
            limit_train_batches: Limit::default(),
            limit_val_batches: Limit::default(),
            batch_size: 64,
            judge: Judge::DEFAULT,
            margin: None,
            learns_by: None,
            gradient_clip_val: None,
            accumulate_grad_batches: 1,
            freeze: Vec::new(),
            averaging: None,
            early_stopping: None,
            profile_every_n_steps: None,
            hyperparameters: Hyperparameters::new(),
            is_hidden: false,
            #[cfg(feature = "cli")]
            faults: Vec::new(),
            #[cfg(feature = "cli")]
            planted_layer: None,
            #[cfg(feature = "cli")]
            twin: None,
            build: Arc::new(build),
        }
    }

    /// Sets the name under which the model is registered, for example to register one struct at
    /// several sizes.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Sets a short description, which `cargo amp models` shows.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// Sets the data set that the model is trained on by default. If this method is not called, the
    /// model is trained on the registry's first data set.
    #[must_use]
    pub fn data(mut self, name: &'static str) -> Self {
        self.data = Some(name);
        self
    }

    /// Sets the number of examples per batch. The default is 64.
    #[must_use]
    pub fn batch_size(mut self, examples: i64) -> Self {
        self.batch_size = examples;
        self
    }

    /// Sets the validation metric by which the model is judged: a fraction, for which higher values
    /// are better. It is shown in percent. The default is `val_acc`. The name of an error, such as
    /// `val_loss` or `val_mae`, is refused when the registry is checked.
    #[must_use]
    pub fn metric(mut self, name: &'static str) -> Self {
        self.judge = Judge::higher(name);
        self
    }

    /// Sets the validation metric by which the model is judged: a number that is not a fraction,
    /// such as a reward or a peak signal-to-noise ratio, for which higher values are better. The
    /// name of an error is refused, as in [`metric`](Self::metric).
    #[must_use]
    pub fn score(mut self, name: &'static str) -> Self {
        self.judge = Judge::score(name);
        self
    }

    /// Sets the validation metric by which the model is judged. Lower values must be better, as for
    /// `val_mae`.
    #[must_use]
    pub fn error_metric(mut self, name: &'static str) -> Self {
        self.judge = Judge::lower(name);
        self
    }

    /// Judges the model by its validation loss. Use this method for a model without a metric, for
    /// example a language model.
    #[must_use]
    pub fn judged_by_loss(mut self) -> Self {
        self.judge = Judge::loss();
        self
    }

    /// Sets the margin: how much worse than 32-true you accept a precision to be, in the unit of
    /// the metric. 0.01 is one percentage point of an accuracy. If a precision is worse than
    /// 32-true by the margin or more, the gate calls this a regression. If this method is not
    /// called, the margin is the one that `cargo amp margins` recorded.
    #[must_use]
    pub fn margin(mut self, margin: f64) -> Self {
        self.margin = Some(margin);
        self
    }

    /// Sets by how much training must improve the metric, compared with the same model with frozen
    /// weights. If it improves less, the gate fails, because the model did not learn. The default
    /// is the margin.
    #[must_use]
    pub fn learns_by(mut self, difference: f64) -> Self {
        self.learns_by = Some(difference);
        self
    }

    /// Sets the global norm to which gradients are clipped. By default gradients are not clipped.
    #[must_use]
    pub fn gradient_clip_val(mut self, norm: f64) -> Self {
        self.gradient_clip_val = Some(norm);
        self
    }

    /// Sets the number of batches whose gradients are accumulated for one optimizer step. The
    /// default is 1.
    #[must_use]
    pub fn accumulate_grad_batches(mut self, batches: i64) -> Self {
        self.accumulate_grad_batches = batches;
        self
    }

    /// Freezes parameters in every run, for example pretrained layers; see
    /// [`OptimizationConfig::freeze`](amp_core::trainer::OptimizationConfig::freeze).
    #[must_use]
    pub fn freeze(mut self, freeze: impl IntoIterator<Item = Freeze>) -> Self {
        self.freeze.extend(freeze);
        self
    }

    /// Averages the weights during every run. The averaged weights are validated and saved.
    #[must_use]
    pub fn averaging(mut self, averaging: Averaging) -> Self {
        self.averaging = Some(averaging);
        self
    }

    /// Ends training if the logged value `name` has not improved for `patience` epochs. It is known
    /// whether smaller or larger values are better for a loss, for the metric by which the model is
    /// judged, and for built-in metrics in `#[metric(…)]`. For another value, `name` must end in
    /// `:min` or `:max`, as in `val_reward:max`, or your metric implements `Metric::mode`.
    #[must_use]
    pub fn early_stopping(mut self, name: impl Into<String>, patience: u32) -> Self {
        self.early_stopping = Some((name.into(), patience));
        self
    }

    /// Measures how long each phase of a step takes, in one of every `steps` steps. By default no
    /// step is measured.
    #[must_use]
    pub fn profile_every_n_steps(mut self, steps: i64) -> Self {
        self.profile_every_n_steps = Some(steps);
        self
    }

    /// Sets hyperparameters that differ from the struct's defaults, as a JSON object:
    /// `.hyperparameters(amp_verify::json!({ "hidden_size": 128 }))`.
    ///
    /// # Panics
    /// When the value is not a JSON object, which is a mistake in the registry's source.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Value) -> Self {
        let Value::Object(hyperparameters) = hyperparameters else {
            panic!("hyperparameters of {}: {hyperparameters} is not a JSON object", self.name)
        };
        self.hyperparameters = hyperparameters;
        self
    }

    /// Hides the model from the list of models. A command runs a hidden model only if the user
    /// gives its name.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.is_hidden = true;
        self
    }

    /// Declares which faults of `cargo amp selftest` change the results of this model. A fault is a
    /// mistake that `selftest` makes in training on purpose, to test that the gate reports it. With
    /// this model, `selftest` tests only these faults.
    /// [`Fault::needs`](crate::selftest::Fault::needs) says which property a model needs for each
    /// fault.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn reveals(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// Sets the path of the layer into which `cargo amp selftest` puts those faults that change a
    /// single layer, for example `encoder.layers.1.linear1`. The layer must compute in 16 bits, and
    /// must not be fused with other layers.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn plants_in(mut self, layer: &'static str) -> Self {
        self.planted_layer = Some(layer);
        self
    }

    /// Sets the same model written in PyTorch (its PyTorch version). `cargo amp parity` trains both
    /// and compares them.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn twin(mut self, twin: Twin) -> Self {
        self.twin = Some(twin);
        self
    }

    #[cfg(feature = "cli")]
    pub(crate) fn own_twin(&self) -> Option<&Twin> {
        self.twin.as_ref()
    }

    #[cfg(feature = "cli")]
    pub(crate) fn planted_layer(&self) -> Option<&'static str> {
        self.planted_layer
    }

    #[cfg(feature = "cli")]
    pub(crate) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Returns the name under which the model is registered.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the validation value by which the model is judged.
    pub fn judge(&self) -> Judge {
        self.judge
    }

    /// Returns the margin that the registry declares: how much worse than 32-true a precision may
    /// be. Returns `None` if [`margin`](Self::margin) was not called.
    pub fn declared_margin(&self) -> Option<f64> {
        self.margin
    }

    /// Returns the name of the data set that the model is trained on. If the model declares none,
    /// this is the registry's first data set.
    ///
    /// # Errors
    /// When the registry has no data set.
    pub fn data_name(&self, registry: &Registry) -> Result<&'static str> {
        let first = || registry.data_sets().next().map(|set| set.name);
        self.data.or_else(first).ok_or_else(|| {
            Error::config(format!(
                "{} has no data: add a data set to the registry with `.data_set(DataSet::new(…))`",
                self.name
            ))
        })
    }

    /// Returns the values of all hyperparameters of the model: those in `set`, and the defaults of
    /// all others.
    ///
    /// # Errors
    /// When a hyperparameter is unknown or out of range.
    pub fn all_hyperparameters(&self, set: &Hyperparameters) -> Result<Hyperparameters> {
        let _section = random::seeded(0)?;
        Ok(self.build(set)?.hyperparameters())
    }

    /// Builds the model. The initial weights come from libtorch's global random generator.
    ///
    /// # Errors
    /// When a hyperparameter is unknown or out of range.
    pub fn build(&self, hyperparameters: &Hyperparameters) -> Result<Box<dyn LightningModule>> {
        (self.build)(hyperparameters)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Registers a struct that derives `LightningModule` as a [`Model`](crate::Model). The name of the
/// model is the last segment of the struct's path: `model!(nets::Net)` has the name `Net`.
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// # #[derive(LightningModule)]
/// # #[loss(mse_loss)]
/// # #[optimizer(adamw, lr = 1e-3)]
/// # struct Net { #[layer(linear(64, 10))] head: Linear }
/// let model = amp_verify::model!(Net).judged_by_loss().margin(0.01).epochs(5);
/// assert_eq!(model.name(), "Net");
/// ```
#[macro_export]
macro_rules! model {
    ($model:ty) => {
        $crate::Model::new(
            $crate::__private::name_of(::core::stringify!($model)),
            |hyperparameters| {
                let builder = <$model>::builder().hyperparameters(hyperparameters)?;
                ::core::result::Result::Ok(::std::boxed::Box::new(builder.build()?))
            },
        )
    };
}

/// Returns the last segment of a struct's path, without type parameters: `Net` for `nets::Net<T>`.
pub fn name_of(written: &'static str) -> &'static str {
    let path = written.split('<').next().unwrap_or(written);
    path.rsplit("::").next().unwrap_or(path).trim()
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[rstest::rstest]
    #[case("Net")]
    #[case("nets::Net")]
    #[case("crate :: nets :: Net")]
    #[case("Net<my::Backbone>")]
    #[case("nets::Net < my::Backbone >")]
    fn a_model_is_named_after_its_struct(#[case] written: &'static str) {
        assert_eq!(name_of(written), "Net");
    }
}
