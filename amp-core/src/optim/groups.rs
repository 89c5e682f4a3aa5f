//! Parameter groups: different optimizer options for different parameters.

use super::{Algorithm, BuildOptimizer, Optimizer, Selection, Storage, engine::Engine};
use crate::{Error, Result, nn::Parameter};

/// An optimizer with different options for different parameters (PyTorch's param_groups).
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
/// A schedule changes the rate of every group, starting from the rate in the group's options.
/// Groups are numbered in the order in which they are declared. Parameters that no group selects
/// are in group 0.
#[derive(Debug, Clone)]
pub struct ParamGroups<O> {
    base: O,
    groups: Vec<(Selection, O)>,
}

impl<O> ParamGroups<O> {
    /// Sets the options of all parameters that no group selects.
    pub fn new(base: O) -> Self {
        Self { base, groups: Vec::new() }
    }

    /// Adds a group: sets the options of the parameters that `params` selects. `params` is a
    /// [`Selection`] or a list of name patterns.
    #[must_use]
    pub fn group(mut self, params: impl Into<Selection>, options: O) -> Self {
        self.groups.push((params.into(), options));
        self
    }
}

impl<A: Algorithm> BuildOptimizer for A {
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        let group_of = vec![0; parameters.len()];
        Ok(Box::new(Engine::new(vec![self.clone()], parameters, &group_of, storage)?))
    }
}

impl<O: Algorithm> BuildOptimizer for ParamGroups<O> {
    /// # Errors
    /// When the optimizer cannot be built, a pattern matches no parameter, or two groups match the
    /// same parameter.
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        for (selection, _) in &self.groups {
            selection.selects_something(&parameters)?;
        }
        let group_of = |parameter: &Parameter| {
            let mut matching =
                (0..self.groups.len()).filter(|group| self.groups[*group].0.matches(parameter));
            match (matching.next(), matching.next()) {
                (_, Some(_)) => Err(Error::config(format!(
                    "optimizer: `{}` is in two parameter groups: change the patterns so that \
                     only one group matches it",
                    parameter.name
                ))),
                (group, None) => Ok(group.map_or(0, |group| group + 1)),
            }
        };
        let mut group_of = parameters.iter().map(group_of).collect::<Result<Vec<_>>>()?;
        let mut options = vec![self.base.clone()];
        options.extend(self.groups.iter().map(|(_, options)| options.clone()));
        if !group_of.contains(&0) {
            // If all parameters are in other groups, group 0 is removed, so that this empty group
            // does not appear among the rates.
            options.remove(0);
            group_of.iter_mut().for_each(|group| *group -= 1);
        }
        Ok(Box::new(Engine::new(options, parameters, &group_of, storage)?))
    }
}
