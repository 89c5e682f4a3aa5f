//! What a forward pass knows besides its input.

mod call;
mod evaluating;
mod fused;
mod products;

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

pub(crate) use evaluating::{Evaluating, take_trained_in_evaluation};

use super::{
    Segment, Survey,
    probe::{DtypeProbe, GroupProbe, Observer, Probe, Substitute},
};
use crate::precision::{Policy, Region, RegionPlan};

/// Which modules drop their activations and compute them again for the backward pass.
pub(in crate::nn) enum Checkpointing {
    /// None.
    Off,
    /// Those that say so.
    Declared,
    /// These.
    Chosen(Rc<[Segment]>),
    /// None, but those that could are measured.
    Measured(Rc<Survey>),
}

/// The state of a forward pass: training or not, precision, path, observer.
pub struct Context {
    policy: Policy,
    training: bool,
    recomputing: bool,
    dropout: bool,
    /// Whether layers may run in one.
    fuses: bool,
    checkpointing: Checkpointing,
    islands: Rc<BTreeMap<String, Region>>,
    path: RefCell<String>,
    plan: Cell<RegionPlan>,
    observer: Observer,
    watches_products: Cell<bool>,
}

impl Context {
    /// A pass under `policy`; `training` switches dropout and batch statistics on.
    pub fn new(policy: Policy, training: bool) -> Self {
        evaluating::note(training);
        Self {
            policy,
            training,
            recomputing: false,
            dropout: training,
            fuses: true,
            checkpointing: if training { Checkpointing::Declared } else { Checkpointing::Off },
            islands: Rc::default(),
            path: RefCell::default(),
            plan: Cell::new(RegionPlan::of(policy.precision)),
            observer: Observer::Nobody,
            watches_products: Cell::default(),
        }
    }

    /// The same pass, module by module, shown to `probe`.
    #[must_use]
    pub fn with_probe(mut self, probe: Rc<dyn Probe>) -> Self {
        self.observer = Observer::Tensors(probe);
        self
    }

    /// The same pass, its dtypes shown to `probe`.
    #[must_use]
    pub fn with_dtype_probe(mut self, probe: Rc<dyn DtypeProbe>) -> Self {
        self.observer = Observer::Dtypes(probe);
        self
    }

    /// The same pass, the groups of layers that run in one shown to `probe`.
    #[must_use]
    pub fn with_group_probe(mut self, probe: Rc<dyn GroupProbe>) -> Self {
        self.observer = Observer::Groups(probe);
        self
    }

    /// The same pass, module by module, with other tensors between them.
    #[must_use]
    pub fn with_substitute(mut self, substitute: Rc<dyn Substitute>) -> Self {
        self.observer = Observer::Substitutes(substitute);
        self
    }

    /// Regions by module path, over those the struct declares. The same map must have been given
    /// to [`place`](super::place), which puts the parameters in their region's dtype.
    #[must_use]
    pub fn with_islands(mut self, islands: Rc<BTreeMap<String, Region>>) -> Self {
        self.islands = islands;
        self
    }

    /// The same pass without dropout, also while training.
    #[must_use]
    pub fn without_dropout(mut self) -> Self {
        self.dropout = false;
        self
    }

    /// The same pass, each layer by itself, also where the device has kernels for several in one.
    #[must_use]
    pub fn without_fusion(mut self) -> Self {
        self.fuses = false;
        self
    }

    /// The same pass, keeping every activation: a probe sees checkpointed modules with their graph.
    #[must_use]
    pub fn without_checkpointing(mut self) -> Self {
        self.checkpointing = Checkpointing::Off;
        self
    }

    /// The same pass, where these segments drop their activations, whatever modules say themselves.
    #[must_use]
    pub(crate) fn with_segments(mut self, segments: Rc<[Segment]>) -> Self {
        self.checkpointing = Checkpointing::Chosen(segments);
        self
    }

    /// The same pass, measured.
    #[must_use]
    pub(crate) fn with_survey(mut self, survey: Rc<Survey>) -> Self {
        self.checkpointing = Checkpointing::Measured(survey);
        self
    }

    /// The same pass, run once more: what it counts was already counted.
    #[must_use]
    pub(crate) fn again(mut self) -> Self {
        self.recomputing = true;
        self
    }

    /// Whether the pass trains: batch statistics are on, and dropout unless
    /// [without](Self::without_dropout).
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Whether dropout is on.
    pub fn drops_out(&self) -> bool {
        self.dropout
    }

    /// Which modules drop their activations.
    pub(in crate::nn) fn checkpointing(&self) -> &Checkpointing {
        &self.checkpointing
    }

    /// Whether a module runs for the second time on the same input, as checkpointed modules do:
    /// batch statistics were already counted.
    pub fn is_recomputing(&self) -> bool {
        self.recomputing
    }

    /// This point of the pass, for running a module again later. It shares nothing with the pass,
    /// since it may be freed on another thread, and nobody sees it.
    pub(in crate::nn) fn recomputing(&self) -> Self {
        Self {
            policy: self.policy,
            training: self.training,
            recomputing: true,
            dropout: self.dropout,
            fuses: self.fuses,
            checkpointing: match &self.checkpointing {
                Checkpointing::Declared => Checkpointing::Declared,
                // What was chosen or measured is not looked into.
                _ => Checkpointing::Off,
            },
            islands: Rc::new(self.islands.as_ref().clone()),
            path: self.path.clone(),
            plan: self.plan.clone(),
            observer: Observer::Nobody,
            watches_products: Cell::default(),
        }
    }

    /// The precision policy of the pass.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The dotted path of the module that runs now.
    pub fn path(&self) -> Ref<'_, str> {
        Ref::map(self.path.borrow(), String::as_str)
    }
}
