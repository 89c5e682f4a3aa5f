//! Who is told of a run: the callbacks in the order they were added, and where events go.

use crate::{
    Hook, Result,
    callback::{Action, Callback},
    event::Event,
    precision::{Gradients, Unscaled},
};

/// Where events go.
pub(super) type Emit<'a> = dyn FnMut(Event) -> Result<()> + 'a;

/// The callbacks of a run, called in the order they were added.
pub(super) struct Callbacks<'r, 'c>(pub(super) &'r mut [Box<dyn Callback + 'c>]);

impl Callbacks<'_, '_> {
    pub(super) fn each(
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
