//! The observers of a run: the callbacks, the receiver of events, the checks of invariants, and the
//! log.

use std::collections::HashSet;

use super::invariants::Invariants;
use crate::{
    Error, Hook, Result,
    callback::{Action, Callback},
    event::Event,
    log::Log,
    precision::{Gradients, Unscaled},
};

/// Receives the events of a run.
pub(in crate::trainer) type Emit<'a> = dyn FnMut(Event) -> Result<()> + 'a;

/// The callbacks, the receiver of events, the checks of invariants and the log of a run.
pub(in crate::trainer) struct Observers<'r, 'c> {
    pub(in crate::trainer) callbacks: Callbacks<'r, 'c>,
    pub(in crate::trainer) emit: &'r mut Emit<'r>,
    /// Checks the invariants of training.
    pub(in crate::trainer) invariants: Invariants,
    /// The values that were logged in the current epoch.
    pub(in crate::trainer) log: Log,
}

/// The callbacks of a run. They are called in the order in which they were added.
pub(in crate::trainer) struct Callbacks<'r, 'c>(
    pub(in crate::trainer) &'r mut [Box<dyn Callback + 'c>],
);

impl Callbacks<'_, '_> {
    /// Returns an error if two callbacks have the same name, because a checkpoint stores only one
    /// state per name.
    pub(in crate::trainer) fn check(&self) -> Result<()> {
        let mut names = HashSet::new();
        match self.0.iter().map(|callback| callback.name()).find(|name| !names.insert(name.clone()))
        {
            None => Ok(()),
            Some(name) => Err(Error::config(format!(
                "two callbacks are called `{name}`: a checkpoint would contain the state of only \
                 one of them; give each callback its own name"
            ))),
        }
    }

    pub(in crate::trainer) fn each(
        &mut self,
        mut call: impl FnMut(&mut dyn Callback) -> Result<Vec<Action>>,
    ) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        for callback in self.0.iter_mut() {
            actions.extend(call(callback.as_mut())?);
        }
        Ok(actions)
    }

    pub(super) fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let mut callbacks = self.0.iter_mut();
        callbacks.try_for_each(|callback| callback.on_before_optimizer_step(gradients, hook))
    }
}
