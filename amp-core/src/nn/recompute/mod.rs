//! Activation checkpointing: the activations of a module are not kept after the forward pass, and
//! the backward pass computes them again. A [`Checkpoint`] applies this to one module, and a
//! [`Segment`] to several layers of a sequence. [`measure`] measures how many bytes this saves.

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

/// Activation checkpointing for a module (torch.utils.checkpoint). The activations of the module
/// are not kept. The backward pass computes them again, with the same autocast state and the same
/// random numbers. On the CPU the gradients are bit-identical to those without checkpointing.
/// Running statistics are updated only once.
///
/// If there is a memory budget ([`MemoryConfig::budget`](crate::trainer::MemoryConfig::budget)),
/// the trainer decides which modules are recomputed, and `enabled` has no effect.
///
/// The tensors of the module keep their names.
#[derive(Debug)]
pub struct Checkpoint<M> {
    module: Arc<M>,
    enabled: bool,
}

impl<M> Checkpoint<M> {
    /// Creates a checkpoint of `module`. The checkpoint recomputes activations in training if
    /// `enabled` is true. Otherwise the module runs as without a checkpoint.
    pub fn new(module: M, enabled: bool) -> Self {
        // The module is in an `Arc`, because the autograd graph keeps it, too, and libtorch may
        // free the graph on another thread.
        Self { module: Arc::new(module), enabled }
    }
}

impl<M> Checkpoint<M> {
    /// Returns a checkpoint of `view(module)`, a wrapper of the module, with the same value of
    /// `enabled`.
    pub(in crate::nn) fn viewed<V>(&self, view: impl FnOnce(&M) -> V) -> Checkpoint<V> {
        Checkpoint::new(view(&self.module), self.enabled)
    }
}

impl<M: Visit> Visit for Checkpoint<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.module.visit(visitor);
    }
}

/// Returns whether the input or a parameter requires a gradient, so that the backward pass reaches
/// this module. Otherwise nothing needs to be recomputed.
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

/// Waits until no other thread draws random numbers from the global generator (in a seeded
/// section). A checkpoint compares the state of the generator before and after its module, to find
/// out whether the module draws random numbers. If another thread drew numbers meanwhile, the
/// backward pass would reset the generator for nothing, and disturb the other thread. A
/// recomputation does not wait: it could wait for the very thread that waits for its result.
fn without_sections(cx: &Context) -> Option<Place> {
    (!cx.is_recomputing()).then(random::place)
}

/// Calls `first` in this forward pass, without keeping activations, and calls `again` in the
/// backward pass. Faults that the self-test (`cargo amp selftest`) has planted on this thread apply
/// to `again`, too.
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
