//! The context of a forward pass: precision, training or evaluation, the current path, and
//! observers.

mod call;
mod evaluating;
mod fused;
mod inner;
mod output;
mod products;
mod random;

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

pub(crate) use evaluating::{Evaluating, take_trained_in_evaluation};
#[doc(hidden)]
pub use inner::with_rounded_gradient;

use super::{
    Segment, Survey,
    attention::Entries,
    probe::{DtypeProbe, GroupProbe, Observer, Probe, Substitute, Trace},
};
use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    precision::{Policy, Region, RegionPlan},
};

/// Which modules recompute their activations in the backward pass, instead of keeping them.
pub(in crate::nn) enum Checkpointing {
    /// No module.
    Off,
    /// The modules that the model wraps in an enabled `Checkpoint`.
    Declared,
    /// The modules and ranges of layers that the trainer chose for recomputation, so that the step
    /// stays within the memory budget.
    Chosen(Rc<[Segment]>),
    /// No module. Instead, the memory and time of the modules that could be recomputed are
    /// measured.
    Measured(Rc<Survey>),
}

/// The state of a forward pass: training or evaluation, the precision, the path of the running
/// module, and an observer.
pub struct Context {
    policy: Policy,
    training: Cell<bool>,
    recomputing: bool,
    dropout: Cell<bool>,
    /// Whether layers may be computed fused with the layers that follow.
    fuses: bool,
    checkpointing: Checkpointing,
    overrides: Rc<BTreeMap<String, Region>>,
    path: RefCell<String>,
    plan: Cell<RegionPlan>,
    observer: Observer,
    watches_products: Cell<bool>,
    /// The cached keys and values of earlier tokens.
    cache: Option<Rc<Entries>>,
}

impl Context {
    /// Creates the context of a forward pass under `policy`. If `training` is true, dropout is
    /// active, and batch norms use the batch's statistics.
    pub fn new(policy: Policy, training: bool) -> Self {
        evaluating::note(training);
        Self {
            policy,
            training: Cell::new(training),
            recomputing: false,
            dropout: Cell::new(training),
            fuses: true,
            checkpointing: if training { Checkpointing::Declared } else { Checkpointing::Off },
            overrides: Rc::default(),
            path: RefCell::default(),
            plan: Cell::new(RegionPlan::of(policy.precision)),
            observer: Observer::Nobody,
            watches_products: Cell::default(),
            cache: None,
        }
    }

    /// Reports the tensors of every module to `probe`. In such a forward pass, layers are not
    /// fused, but run one by one.
    #[must_use]
    pub fn with_probe(mut self, probe: Rc<dyn Probe>) -> Self {
        self.observer = Observer::Tensors(probe);
        self
    }

    /// Reports the dtype of each module's output and of each matrix product to `probe`.
    #[must_use]
    pub fn with_dtype_probe(mut self, probe: Rc<dyn DtypeProbe>) -> Self {
        self.observer = Observer::Dtypes(probe);
        self
    }

    /// Reports groups of fused layers to `probe`.
    #[must_use]
    pub fn with_group_probe(mut self, probe: Rc<dyn GroupProbe>) -> Self {
        self.observer = Observer::Groups(probe);
        self
    }

    /// Lets `substitute` replace the inputs, outputs and intermediate tensors of modules. In such a
    /// forward pass, layers are not fused, but run one by one. All activations are kept, because a
    /// recomputation in the backward pass would not replace any tensor.
    #[must_use]
    pub fn with_substitute(mut self, substitute: Rc<dyn Substitute>) -> Self {
        self.observer = Observer::Substitutes(substitute);
        self.without_checkpointing()
    }

    /// Reports the beginning and the end of every module to `trace`. In such a forward pass, layers
    /// are not fused, but run one by one.
    #[must_use]
    pub(crate) fn with_trace(mut self, trace: Rc<dyn Trace>) -> Self {
        self.observer = Observer::Trace(trace);
        self.without_fusion()
    }

    /// Sets the precision regions of the modules with these paths. They replace the regions that
    /// the structs declare. Call [`place`](super::place) with the same map, so that the parameters
    /// have the dtypes of these regions.
    #[must_use]
    pub fn with_overrides(mut self, overrides: Rc<BTreeMap<String, Region>>) -> Self {
        self.overrides = overrides;
        self
    }

    /// Switches dropout off, even if this is a forward pass in training.
    #[must_use]
    pub fn without_dropout(self) -> Self {
        self.dropout.set(false);
        self
    }

    /// Forbids the fusion of layers, even if the device has kernels for fused layers.
    #[must_use]
    pub fn without_fusion(mut self) -> Self {
        self.fuses = false;
        self
    }

    /// Keeps the activations of all modules, so that a probe can read the autograd graph of
    /// checkpointed modules, too.
    #[must_use]
    pub fn without_checkpointing(mut self) -> Self {
        self.checkpointing = Checkpointing::Off;
        self
    }

    /// Recomputes the activations of these segments (modules or ranges of layers) in the backward
    /// pass, and those of no other module.
    #[must_use]
    pub(crate) fn with_segments(mut self, segments: Rc<[Segment]>) -> Self {
        self.checkpointing = Checkpointing::Chosen(segments);
        self
    }

    /// Measures, with `survey`, the memory and time of the modules that could be recomputed.
    #[must_use]
    pub(crate) fn with_survey(mut self, survey: Rc<Survey>) -> Self {
        self.checkpointing = Checkpointing::Measured(survey);
        self
    }

    /// Marks a forward pass that only measures, or that repeats another one. In such a pass, norms
    /// do not update their running statistics.
    #[must_use]
    pub(crate) fn again(mut self) -> Self {
        self.recomputing = true;
        self
    }

    /// Lets attention layers read the cached keys and values of earlier tokens, and add new ones.
    #[must_use]
    pub(in crate::nn) fn with_cache(mut self, cache: Rc<Entries>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Returns the cached keys and values of earlier tokens, or `None` without a cache.
    pub(in crate::nn) fn cache(&self) -> Option<&Entries> {
        self.cache.as_deref()
    }

    /// Returns the number of tokens in the [`KvCache`](super::KvCache), which is also the position
    /// of the first token of this forward pass. Returns 0 without a cache.
    pub fn past(&self) -> i64 {
        self.cache().map_or(0, Entries::past)
    }

    /// Returns the positions of the tokens `ids`, `[N, L]`, in their sequences, as input for a
    /// position embedding. The result is int64 `[L]` on the device of `ids`. The positions begin at
    /// 0 or, with a [`KvCache`](super::KvCache), after the cached tokens.
    ///
    /// # Errors
    /// When `ids` is not `[N, L]`.
    pub fn places(&self, ids: &Tensor) -> Result<Tensor> {
        let &[_, length] = ids.size().as_slice() else {
            let text = format!("the tokens are {:?}, but must be [N, L]", ids.size());
            return Err(Error::config(text));
        };
        let first = self.past();
        Ok(Tensor::f_arange_start(first, first + length, (Kind::Int64, ids.device()))?)
    }

    /// Returns whether this is a forward pass in training. In training, batch norms use the batch's
    /// statistics, and dropout is active unless it is [disabled](Self::without_dropout).
    pub fn is_training(&self) -> bool {
        self.training.get()
    }

    /// Returns whether dropout is active.
    pub fn drops_out(&self) -> bool {
        self.dropout.get()
    }

    /// Returns which modules recompute their activations in the backward pass.
    pub(in crate::nn) fn checkpointing(&self) -> &Checkpointing {
        &self.checkpointing
    }

    /// Returns whether this forward pass only measures or repeats another one, for example when a
    /// checkpointed module runs again in the backward pass to recompute its activations. In this
    /// case a norm must not update its running statistics.
    pub fn is_recomputing(&self) -> bool {
        self.recomputing
    }

    /// Returns a context in which the current module can be run once more later, under the same
    /// path and in the same precision region. The new context has no observer and no cache.
    pub(in crate::nn) fn recomputing(&self) -> Self {
        Self {
            policy: self.policy,
            training: self.training.clone(),
            recomputing: true,
            dropout: self.dropout.clone(),
            fuses: self.fuses,
            checkpointing: match &self.checkpointing {
                Checkpointing::Declared => Checkpointing::Declared,
                // If the trainer has chosen this module for recomputation, or measures it, the
                // modules inside this module are not recomputed separately.
                _ => Checkpointing::Off,
            },
            overrides: Rc::new(self.overrides.as_ref().clone()),
            path: self.path.clone(),
            plan: self.plan.clone(),
            observer: Observer::Nobody,
            watches_products: Cell::default(),
            cache: None,
        }
    }

    /// Returns the precision policy of the forward pass.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Returns the dotted path of the current module.
    pub fn path(&self) -> Ref<'_, str> {
        Ref::map(self.path.borrow(), String::as_str)
    }
}
