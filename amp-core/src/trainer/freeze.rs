//! Freezes and unfreezes parameters during a run.

use std::collections::HashSet;

use super::config::Freeze;
use crate::{
    Error, LightningModule, Result,
    nn::{self, Parameter},
    optim::{Patterns, Scheduled},
    parameter::Frozen,
};

/// The frozen parameters of a run, and the entries of the `freeze` option.
pub(super) struct Freezing {
    entries: Vec<Entry>,
    parameters: Vec<Parameter>,
    /// For each entry, whether the entry currently freezes its parameters.
    holding: Vec<bool>,
    frozen: Frozen,
}

struct Entry {
    freeze: Freeze,
    patterns: Patterns,
}

impl Freezing {
    /// Freezes, at the start of a run, the parameters that the options name.
    ///
    /// # Errors
    /// When a pattern matches no parameter, or no parameter is left to train.
    pub(super) fn new(model: &dyn LightningModule, options: &[Freeze]) -> Result<Self> {
        let parameters = nn::parameters(model);
        let mut entries = Vec::with_capacity(options.len());
        for freeze in options {
            let patterns: Patterns = [freeze.pattern()].into_iter().collect();
            patterns.match_something("freeze", &parameters)?;
            entries.push(Entry { freeze: freeze.clone(), patterns });
        }
        let mut freezing =
            Self { entries, parameters, holding: Vec::new(), frozen: Frozen::none() };
        freezing.update(0, 0);
        let trains = freezing.parameters.iter().any(|one| one.tensor.requires_grad());
        if !trains && !freezing.parameters.is_empty() {
            let names: Vec<String> = options.iter().map(Freeze::to_string).collect();
            return Err(Error::config(format!(
                "freeze: {} leaves no parameter to train: freeze fewer parameters",
                names.join(", ")
            )));
        }
        Ok(freezing)
    }

    /// Checks that each parameter that is frozen for only a part of the run belongs to an
    /// optimizer, which trains the parameter afterwards.
    ///
    /// # Errors
    /// When such a parameter belongs to no optimizer.
    pub(super) fn check_optimizers(&self, optimizers: &[Scheduled]) -> Result<()> {
        let held = optimizers.iter().flat_map(|one| one.optimizer.parameters().iter());
        let held: HashSet<&str> = held.map(|parameter| parameter.name.as_str()).collect();
        let others = self.parameters.iter().filter(|own| !held.contains(own.name.as_str()));
        for Parameter { name, .. } in others {
            let mut entries = self.entries.iter().filter(|one| one.patterns.matches(name));
            if let Some(Entry { freeze, .. }) = entries.clone().find(|one| !one.freeze.is_endless())
                && !entries.any(|one| one.freeze.is_endless())
            {
                return Err(Error::config(format!(
                    "`{name}` would be trained by no optimizer after `{freeze}` has ended: let a \
                     pattern of an optimizer match it, or freeze it for the whole run"
                )));
            }
        }
        Ok(())
    }

    /// Returns the number of elements of the parameters that are frozen at the moment, but trained
    /// in the run's last step. `last` is the epoch of that step, and the number of steps before it.
    pub(super) fn trained_later(&self, last: (i64, u64)) -> i64 {
        let frozen = self.parameters.iter().filter(|own| !own.tensor.requires_grad());
        let later = frozen.filter(|own| {
            let holds = |one: &Entry| one.freeze.holds(last.0, last.1);
            !self.entries.iter().any(|one| one.patterns.matches(&own.name) && holds(one))
        });
        later.map(|own| own.tensor.numel() as i64).sum()
    }

    /// Returns a note about the freezes that should end before the end of the run, but do not.
    /// `last` is the epoch of the run's last step, and the number of steps before that step.
    pub(super) fn note(&self, last: (i64, u64)) -> Option<String> {
        let freezes = self.entries.iter().map(|one| &one.freeze);
        let never = freezes.filter(|one| !one.is_endless() && one.holds(last.0, last.1));
        let never: Vec<String> = never.map(Freeze::to_string).collect();
        (!never.is_empty()).then(|| {
            format!(
                "freeze: {} does not end in this run, whose last step is step {} in epoch {} (counted \
                 from 0): choose an earlier end, or freeze the parameters for the whole run",
                never.join(", "),
                last.1,
                last.0
            )
        })
    }

    /// Freezes and unfreezes parameters as the entries require in the given epoch after the given
    /// number of steps. Returns the entries whose freeze has ended.
    pub(super) fn update(&mut self, epoch: i64, global_step: u64) -> Vec<String> {
        let holding: Vec<bool> =
            self.entries.iter().map(|entry| entry.freeze.holds(epoch, global_step)).collect();
        if holding == self.holding {
            return Vec::new();
        }
        let ended = self.entries.iter().zip(self.holding.iter().zip(&holding));
        let ended = ended.filter(|(_, (before, now))| **before && !**now);
        let ended = ended.map(|(entry, _)| entry.freeze.to_string()).collect();
        self.hold(holding);
        ended
    }

    /// Returns for each entry whether it currently freezes its parameters. A checkpoint stores this
    /// list.
    pub(super) fn holding(&self) -> &[bool] {
        &self.holding
    }

    /// Freezes the parameters of the entries for which `holding` is true, and unfreezes all other
    /// parameters.
    pub(super) fn hold(&mut self, holding: Vec<bool>) {
        let is_frozen = |parameter: &&Parameter| {
            let mut entries = self.entries.iter().zip(&holding);
            entries.any(|(entry, holds)| *holds && entry.patterns.matches(&parameter.name))
        };
        let frozen = self.parameters.iter().filter(is_frozen);
        let frozen: Vec<_> = frozen.map(|parameter| parameter.tensor.shallow_clone()).collect();
        self.frozen.replace(frozen);
        self.holding = holding;
    }

    /// Returns the first step after `global_step` at which an entry unfreezes its parameters.
    /// Returns `None` if there is no such step.
    pub(super) fn next_step(&self, global_step: u64) -> Option<u64> {
        let steps = self.entries.iter().filter_map(|entry| entry.freeze.step());
        steps.filter(|step| *step > global_step).min()
    }
}
