//! The options of optimizers and schedules, and the assignment of parameters to optimizers.

use super::{BuildOptimizer, BuildScheduler, Interval, Scheduled, Selection, Storage};
use crate::{Error, Result, nn::Parameter};

/// The options of an optimizer and, optionally, of its schedule. Contains no state.
pub struct OptimizerConfig {
    optimizer: Box<dyn BuildOptimizer>,
    scheduler: Option<(Box<dyn BuildScheduler>, Interval)>,
    params: Option<Selection>,
}

impl OptimizerConfig {
    /// Creates the options of this optimizer, with a constant learning rate.
    pub fn new(optimizer: impl BuildOptimizer + 'static) -> Self {
        Self { optimizer: Box::new(optimizer), scheduler: None, params: None }
    }

    /// Adds a schedule. `interval` says whether the schedule advances after each step or after each
    /// epoch.
    #[must_use]
    pub fn with_scheduler(
        mut self,
        scheduler: impl BuildScheduler + 'static,
        interval: Interval,
    ) -> Self {
        self.scheduler = Some((Box::new(scheduler), interval));
        self
    }

    /// Replaces the optimizer by the result of `wrap`.
    #[must_use]
    pub fn wrap_optimizer(
        mut self,
        wrap: impl FnOnce(Box<dyn BuildOptimizer>) -> Box<dyn BuildOptimizer>,
    ) -> Self {
        self.optimizer = wrap(self.optimizer);
        self
    }

    /// Replaces the schedule, if there is one, by the result of `wrap`.
    #[must_use]
    pub fn wrap_scheduler(
        mut self,
        wrap: impl FnOnce(Box<dyn BuildScheduler>) -> Box<dyn BuildScheduler>,
    ) -> Self {
        self.scheduler = self.scheduler.map(|(scheduler, interval)| (wrap(scheduler), interval));
        self
    }

    /// Selects the parameters that this optimizer trains, by a [`Selection`] or a list of name
    /// patterns. Without this call, the optimizer trains the parameters that no other optimizer
    /// selects.
    #[must_use]
    pub fn params(mut self, params: impl Into<Selection>) -> Self {
        self.params = Some(params.into());
        self
    }

    /// Builds the optimizer and its schedule for `parameters`. The optimizer starts with the first
    /// rate of the schedule.
    ///
    /// # Errors
    /// When an option is out of range, there is no parameter to train, or a parameter that requires a
    /// gradient belongs to no optimizer.
    pub fn build(self, parameters: Vec<Parameter>) -> Result<Scheduled> {
        let mut built = Optimizers::from(self).build(parameters, Storage::default())?;
        Ok(built.remove(0))
    }
}

/// The optimizers of a model: one optimizer, or several, each of which trains some of the
/// parameters with the gradients of a common backward pass. Convert one [`OptimizerConfig`] or a
/// `Vec` of several into this type with `From`.
///
/// ```
/// use amp_core::optim::{AdamW, Muon, OptimizerConfig, Optimizers, Selection};
///
/// // Muon trains the matrices of the body, AdamW all other parameters.
/// let matrices = Selection::all().ndim(2).except(["embedding.*", "head.*"]);
/// let muon = OptimizerConfig::new(Muon { lr: 0.02, ..Default::default() }).params(matrices);
/// let adamw = OptimizerConfig::new(AdamW { lr: 3e-4, ..Default::default() });
/// let optimizers = Optimizers::from(vec![muon, adamw]);
/// ```
pub struct Optimizers(Vec<OptimizerConfig>);

impl From<OptimizerConfig> for Optimizers {
    fn from(config: OptimizerConfig) -> Self {
        Self(vec![config])
    }
}

impl From<Vec<OptimizerConfig>> for Optimizers {
    fn from(configs: Vec<OptimizerConfig>) -> Self {
        Self(configs)
    }
}

impl Optimizers {
    /// Applies `change` to the options of each optimizer.
    #[must_use]
    pub fn map(self, change: impl FnMut(OptimizerConfig) -> OptimizerConfig) -> Self {
        Self(self.0.into_iter().map(change).collect())
    }

    /// Builds each optimizer for the parameters that it selects. Returns at least one optimizer, in
    /// the order of the options.
    ///
    /// # Errors
    /// When an option is out of range, there is no parameter to train, a pattern matches no
    /// parameter, a parameter belongs to two optimizers, or a parameter that requires a gradient
    /// belongs to no optimizer.
    pub fn build(
        self,
        parameters: Vec<Parameter>,
        storage: impl Into<Storage>,
    ) -> Result<Vec<Scheduled>> {
        let storage = storage.into();
        if parameters.is_empty() {
            return Err(Error::config("the model has no parameters: give it at least one layer"));
        }
        let selections: Vec<Option<&Selection>> =
            self.0.iter().map(|config| config.params.as_ref()).collect();
        let shares = split(parameters, &selections)?;
        let mut built: Vec<Scheduled> = Vec::with_capacity(shares.len());
        for (config, share) in self.0.into_iter().zip(shares) {
            let optimizer = config.optimizer.build_with(share, storage)?;
            let same = built.iter().filter(|other| other.optimizer.name() == optimizer.name());
            let name = match same.count() {
                0 => optimizer.name().to_owned(),
                before => format!("{}-{before}", optimizer.name()),
            };
            built.push(Scheduled::new(optimizer, name, config.scheduler)?);
        }
        Ok(built)
    }
}

impl Optimizers {
    /// Returns the number of optimizers.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the schedule of each optimizer; `None` for an optimizer without a schedule.
    pub(crate) fn into_schedules(self) -> Vec<Option<Box<dyn BuildScheduler>>> {
        self.0.into_iter().map(|config| config.scheduler.map(|(schedule, _)| schedule)).collect()
    }
}

/// Returns the parameters of each optimizer. An optimizer without a selection gets the parameters
/// that no other optimizer selects. A frozen parameter may belong to no optimizer.
fn split(
    parameters: Vec<Parameter>,
    selections: &[Option<&Selection>],
) -> Result<Vec<Vec<Parameter>>> {
    let mut takes_rest = (0..selections.len()).filter(|at| selections[*at].is_none());
    let rest = takes_rest.next();
    if takes_rest.next().is_some() {
        return Err(Error::config(
            "two optimizers would train all parameters: select the parameters of each, as in \
             params([\"head.*\"])",
        ));
    }
    for selection in selections.iter().flatten() {
        selection.selects_something(&parameters)?;
    }
    let mut shares: Vec<Vec<Parameter>> = selections.iter().map(|_| Vec::new()).collect();
    for parameter in parameters {
        let matches = |at: &usize| selections[*at].is_some_and(|s| s.matches(&parameter));
        let mut matching = (0..selections.len()).filter(matches);
        let (owner, second) = (matching.next(), matching.next());
        if second.is_some() {
            return Err(Error::config(format!(
                "`{}` would be trained by two optimizers: change the patterns so that only one \
                 optimizer matches it",
                parameter.name
            )));
        }
        let Some(owner) = owner.or(rest) else {
            if !parameter.tensor.requires_grad() {
                continue;
            }
            return Err(Error::config(format!(
                "`{}` would be trained by no optimizer: add a pattern that matches it, leave one \
                 optimizer without patterns for the rest, or freeze it with the option `freeze`",
                parameter.name
            )));
        };
        shares[owner].push(parameter);
    }
    if shares.iter().any(Vec::is_empty) {
        return Err(Error::config(
            "no parameter is left for the optimizer without patterns: remove this optimizer",
        ));
    }
    Ok(shares)
}
