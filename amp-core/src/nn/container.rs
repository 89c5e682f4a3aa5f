//! Modules made of modules.

use tch::Tensor;

use super::{Context, Fusable, Module, Visitor, fused, visit_child};
use crate::Result;

/// Runs its layers in order; their names are their indices, as in nn.Sequential.
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Box<dyn Module>>,
}

impl Sequential {
    /// These layers in this order.
    pub fn new(layers: Vec<Box<dyn Module>>) -> Self {
        Self { layers }
    }
}

impl Module for Sequential {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.layers.forward(input, cx)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        self.layers.visit(visitor);
    }
}

/// nn.ModuleList run in order.
impl<M: Module> Module for Vec<M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let mut x = input.shallow_clone();
        let mut index = 0;
        while index < self.len() {
            let (count, output) = match fused::run(&self[index..], index, &x, cx)? {
                Some(done) => done,
                None => (1, cx.call_nth(index, &self[index], &x)?),
            };
            x = output;
            index += count;
        }
        Ok(x)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        for (index, layer) in self.iter().enumerate() {
            visit_child(visitor, &index.to_string(), None, layer);
        }
    }
}

/// A layer that may be absent; then it is the identity.
impl<M: Module> Module for Option<M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        match self {
            Some(layer) => layer.forward(input, cx),
            None => Ok(input.shallow_clone()),
        }
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        if let Some(layer) = self {
            layer.visit(visitor);
        }
    }

    fn op(&self) -> super::Op {
        self.as_ref().map_or(super::Op::Other, Module::op)
    }

    fn fusable(&self) -> Fusable<'_> {
        self.as_ref().map_or(Fusable::Other, Module::fusable)
    }
}
