//! Parameter groups: options of their own for parameters chosen by name.

use super::{
    BuildOptimizer, Optimizer, Storage, algorithm::Algorithm, engine::Engine, patterns::Patterns,
};
use crate::{Error, Result, nn::Parameter};

/// An optimizer some of whose parameters have options of their own (PyTorch's param_groups).
///
/// ```no_run,standalone_crate
/// # use amp_core::optim::{AdamW, OptimizerConfig, ParamGroups};
/// let base = AdamW { lr: 3e-4, weight_decay: 0.1, ..Default::default() };
/// let groups = ParamGroups::new(base)
///     .group(["*.bias", "*norm*"], AdamW { weight_decay: 0.0, ..base })
///     .group(["head.*"], AdamW { lr: 3e-3, ..base });
/// let config = OptimizerConfig::new(groups);
/// ```
///
/// A schedule moves every group from its own rate. Groups are numbered in this order, those that
/// no group's pattern matches first.
#[derive(Debug, Clone)]
pub struct ParamGroups<O> {
    base: O,
    groups: Vec<(Patterns, O)>,
}

impl<O> ParamGroups<O> {
    /// These options for every parameter that no group takes.
    pub fn new(base: O) -> Self {
        Self { base, groups: Vec::new() }
    }

    /// These options for the parameters that one of the patterns matches. `*` in a pattern is any
    /// text, dots included, `?` any one character.
    #[must_use]
    pub fn group<P: Into<String>>(
        mut self,
        patterns: impl IntoIterator<Item = P>,
        options: O,
    ) -> Self {
        self.groups.push((patterns.into_iter().collect(), options));
        self
    }
}

impl<O: Algorithm> BuildOptimizer for ParamGroups<O> {
    /// # Errors
    /// Also when a pattern matches no parameter, or two groups match the same.
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        for (patterns, _) in &self.groups {
            patterns.match_something("optimizer", &parameters)?;
        }
        let group_of = |parameter: &Parameter| {
            let mut matching = (0..self.groups.len())
                .filter(|group| self.groups[*group].0.matches(&parameter.name));
            match (matching.next(), matching.next()) {
                (_, Some(_)) => Err(Error::config(format!(
                    "optimizer: `{}` is in two parameter groups: let the patterns of one match it",
                    parameter.name
                ))),
                (group, None) => Ok(group.map_or(0, |group| group + 1)),
            }
        };
        let mut group_of = parameters.iter().map(group_of).collect::<Result<Vec<_>>>()?;
        let mut options = vec![self.base];
        options.extend(self.groups.iter().map(|(_, options)| *options));
        if !group_of.contains(&0) {
            // A group of no parameters would still have rates to show.
            options.remove(0);
            group_of.iter_mut().for_each(|group| *group -= 1);
        }
        Ok(Box::new(Engine::new(options, parameters, &group_of, storage)?))
    }
}

/// Builds over one group of all parameters.
pub(super) fn build<A: Algorithm>(
    options: A,
    parameters: Vec<Parameter>,
    storage: Storage,
) -> Result<Box<dyn Optimizer>> {
    let group_of = vec![0; parameters.len()];
    Ok(Box::new(Engine::new(vec![options], parameters, &group_of, storage)?))
}

/// Options of an [`Algorithm`] build one group of all parameters.
macro_rules! build_plainly {
    ($options:ty) => {
        impl $crate::optim::BuildOptimizer for $options {
            fn build_with(
                &self,
                parameters: Vec<$crate::nn::Parameter>,
                storage: $crate::optim::Storage,
            ) -> $crate::Result<Box<dyn $crate::optim::Optimizer>> {
                $crate::optim::groups::build(*self, parameters, storage)
            }
        }
    };
}
pub(super) use build_plainly;
