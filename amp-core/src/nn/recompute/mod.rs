//! Activation checkpointing: activations are not kept for the backward pass but recomputed in it. A
//! [`Checkpoint`] recomputes one module, and a [`Segment`] several layers of a sequence.
//! [`measure`] measures how many bytes that saves.

mod measure;
mod segment;

pub(crate) use measure::{Cell, Survey};
pub use segment::Segment;
pub(in crate::nn) use segment::forward;

use std::sync::Arc;

use tch::Tensor;

use crate::{
    Result, ffi,
    nn::{Context, Module, Op, Role, Visit, Visitor, context::Checkpointing, planted::Planted},
    precision::Region,
    random::{self, Place},
};

/// Activation checkpointing (torch.utils.checkpoint): the module's activations are not kept. The
/// backward pass recomputes them, with the same autocast state and random numbers. On the CPU the
/// gradients are bit-identical. Batch statistics are updated once.
///
/// Under a memory budget ([`MemoryConfig::budget`](crate::trainer::MemoryConfig::budget)) the
/// trainer decides which modules are recomputed, and `enabled` is ignored.
///
/// The names of the module's tensors do not change.
#[derive(Debug)]
pub struct Checkpoint<M> {
    module: Arc<M>,
    enabled: bool,
}

impl<M> Checkpoint<M> {
    /// Checkpoints `module` during training if `enabled` is true. Otherwise it runs normally.
    pub fn new(module: M, enabled: bool) -> Self {
        // The module is in an `Arc`, because the autograd graph owns it too, and a thread of
        // libtorch may free the graph.
        Self { module: Arc::new(module), enabled }
    }
}

impl<M> Checkpoint<M> {
    /// Returns a checkpoint of `view(module)`, a wrapper of the module, with the same `enabled`.
    pub(in crate::nn) fn viewed<V>(&self, view: impl FnOnce(&M) -> V) -> Checkpoint<V> {
        Checkpoint::new(view(&self.module), self.enabled)
    }
}

impl<M: Visit> Visit for Checkpoint<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.module.visit(visitor);
    }
}

/// Returns whether a gradient passes through the module or ends in it. Otherwise nothing needs to
/// be recomputed.
fn is_trained(module: &(impl Visit + ?Sized), input: &Tensor) -> bool {
    struct Look(bool);

    impl Visitor for Look {
        fn enter(&mut self, _: &str, _: Option<Region>) {}

        fn leave(&mut self) {}

        fn tensor(&mut self, _: &str, tensor: &Tensor, _: Role) {
            self.0 |= tensor.requires_grad();
        }
    }

    let mut look = Look(input.requires_grad());
    if !look.0 {
        module.visit(&mut look);
    }
    look.0
}

/// Waits for reproducible sections of other threads. A checkpoint compares the generator's state
/// before and after its module, to find out whether the module draws random numbers. If another
/// thread drew numbers meanwhile, the backward pass would reset the generator for a module that
/// draws nothing, and would disturb that thread. A recomputation does not wait: the thread for
/// which it runs waits for its result, and may itself be in a section.
fn without_sections(cx: &Context) -> Option<Place> {
    (!cx.is_recomputing()).then(random::place)
}

/// Runs `first` now without keeping activations, and `again` in the backward pass. The faults that
/// are planted now apply to `again` too.
fn run(
    input: &Tensor,
    first: impl FnOnce() -> Result<Tensor>,
    again: impl Fn(&Tensor) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let planted = Planted::here();
    ffi::checkpoint(input, first, move |input| planted.during(|| again(input)))
}

impl<M: Module + 'static> Module for Checkpoint<M> {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let is_checkpointed = match cx.checkpointing() {
            Checkpointing::Off => false,
            Checkpointing::Declared => self.enabled,
            Checkpointing::Chosen(segments) => {
                let path = cx.path();
                segments.iter().any(|segment| segment.layers.is_none() && segment.path == *path)
            }
            Checkpointing::Measured(survey) => return survey.module(&*self.module, input, cx),
        };
        if !is_checkpointed {
            return self.module.forward(input, cx);
        }
        if !is_trained(&*self.module, input) {
            return tch::no_grad(|| self.module.forward(input, cx));
        }
        let (module, again) = (self.module.clone(), cx.recomputing());
        let _place = without_sections(cx);
        run(input, || self.module.forward(input, cx), move |input| module.forward(input, &again))
    }

    fn op(&self) -> Op {
        self.module.op()
    }

    fn shared(&self) -> Option<Arc<dyn Module>> {
        Some(self.module.clone())
    }
}
