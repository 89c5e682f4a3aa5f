//! Modules that contain other modules, such as `Sequential`.

use std::sync::Arc;

use tch::Tensor;

use super::{
    Context, Fusable, Module, Visit, Visitor, context::Checkpointing, fused, recompute, visit_child,
};
use crate::Result;

/// Runs its layers one after the other. As in nn.Sequential, the names of the layers are their
/// indices.
#[derive(Default)]
pub struct Sequential {
    /// Each layer is in an `Arc`, because the backward pass may need to keep the layer to recompute
    /// its activations.
    layers: Vec<Arc<dyn Module>>,
}

impl Sequential {
    /// Creates a sequence that runs these layers in this order.
    pub fn new(layers: Vec<Box<dyn Module>>) -> Self {
        Self { layers: layers.into_iter().map(Arc::from).collect() }
    }
}

impl Visit for Sequential {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.layers.visit(visitor);
    }
}

impl Module for Sequential {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        self.layers.forward(input, cx)
    }
}

/// Runs consecutive layers of a container one after the other. `place` is the index of the first of
/// these layers in the container.
pub(super) fn run<M: Module>(
    layers: &[M],
    place: usize,
    input: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    let (mut x, mut done) = (input.shallow_clone(), 0);
    while done < layers.len() {
        let (count, output) = run_first(&layers[done..], place + done, &x, cx)?;
        x = output;
        done += count;
    }
    Ok(x)
}

/// Runs the first of `layers`, if possible fused with the layers that follow. `place` is the index
/// of the first layer in its container. Returns the number of layers that ran, and the output.
pub(super) fn run_first<M: Module>(
    layers: &[M],
    place: usize,
    input: &Tensor,
    cx: &Context,
) -> Result<(usize, Tensor)> {
    match fused::run(layers, place, input, cx)? {
        Some(done) => Ok(done),
        None => Ok((1, cx.call_nth(place, &layers[0], input)?)),
    }
}

/// Runs the modules one after the other. The names of the modules are their indices, as in
/// nn.ModuleList.
impl<M: Visit> Visit for Vec<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        for (index, layer) in self.iter().enumerate() {
            visit_child(visitor, &index.to_string(), None, layer);
        }
    }
}

impl<M: Module> Module for Vec<M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        match cx.checkpointing() {
            Checkpointing::Chosen(segments) => recompute::forward(self, segments, input, cx),
            Checkpointing::Measured(survey) => survey.layers(self, input, cx),
            Checkpointing::Off | Checkpointing::Declared => run(self, 0, input, cx),
        }
    }

    fn type_name(&self) -> &'static str {
        "Vec"
    }
}

/// An optional layer. If the layer is absent, the output is the input.
impl<M: Visit> Visit for Option<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        if let Some(layer) = self {
            layer.visit(visitor);
        }
    }
}

impl<M: Module> Module for Option<M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        match self {
            Some(layer) => layer.forward(input, cx),
            None => Ok(input.shallow_clone()),
        }
    }

    fn op(&self) -> super::Op {
        self.as_ref().map_or(super::Op::Other, Module::op)
    }

    fn fusable(&self) -> Fusable<'_> {
        self.as_ref().map_or(Fusable::Other, Module::fusable)
    }

    fn type_name(&self) -> &'static str {
        self.as_ref().map_or("Identity", Module::type_name)
    }

    fn shared(&self) -> Option<Arc<dyn Module>> {
        self.as_ref().and_then(Module::shared)
    }
}
