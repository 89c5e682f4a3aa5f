//! The model in which a fault is planted.

use std::sync::Arc;

use crate::{
    faults::Fault,
    registry::{Model, Registry},
};

impl Fault {
    /// The model in which the fault is planted: the one that declares to reveal it, or the registry's first
    /// if any model will do.
    pub fn subject(self, registry: &Registry) -> Option<&Arc<Model>> {
        let declared = registry.all_models().find(|model| model.faults().contains(&self));
        declared.or_else(|| registry.models().next().filter(|_| self.needs().is_none()))
    }
}
