//! Chooses the model in which a fault is planted.

use std::sync::Arc;

use crate::{
    faults::Fault,
    registry::{Model, Registry},
};

impl Fault {
    /// Returns the model in which the fault is planted: a model that declares that it reveals the
    /// fault, or the registry's first model if every model reveals it.
    pub fn subject(self, registry: &Registry) -> Option<&Arc<Model>> {
        let declared = registry.all_models().find(|model| model.faults().contains(&self));
        declared.or_else(|| registry.models().next().filter(|_| self.needs().is_none()))
    }
}
