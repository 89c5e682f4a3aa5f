//! Chooses the model into whose training the self-test puts a fault.

use std::sync::Arc;

use crate::{
    faults::Fault,
    registry::{Model, Registry},
};

impl Fault {
    /// Returns the model into whose training the fault is put: the first model that declares the
    /// fault with [`Model::reveals`]. If no model declares it, returns the registry's first model
    /// if the fault changes the results of every model, and `None` otherwise.
    pub fn subject(self, registry: &Registry) -> Option<&Arc<Model>> {
        let declared = registry.all_models().find(|model| model.faults().contains(&self));
        declared.or_else(|| registry.models().next().filter(|_| self.needs().is_none()))
    }
}
