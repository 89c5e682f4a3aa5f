//! What a forward pass knows besides its input.

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
};

use tch::Tensor;

use super::{
    Module, Segment, Survey,
    probe::{Call, DtypeProbe, Given, Observer, Probe},
};
use crate::{
    Result,
    precision::{Policy, Region, RegionPlan},
};

/// Which modules drop their activations and compute them again for the backward pass.
pub(super) enum Checkpointing {
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
    checkpointing: Checkpointing,
    islands: Rc<BTreeMap<String, Region>>,
    path: RefCell<String>,
    plan: Cell<RegionPlan>,
    observer: Observer,
}

impl Context {
    /// A pass under `policy`; `training` switches dropout and batch statistics on.
    pub fn new(policy: Policy, training: bool) -> Self {
        Self {
            policy,
            training,
            recomputing: false,
            dropout: training,
            checkpointing: if training { Checkpointing::Declared } else { Checkpointing::Off },
            islands: Rc::default(),
            path: RefCell::default(),
            plan: Cell::new(RegionPlan::of(policy.precision)),
            observer: Observer::Nobody,
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
    pub(super) fn checkpointing(&self) -> &Checkpointing {
        &self.checkpointing
    }

    /// Whether a module runs for the second time on the same input, as checkpointed modules do:
    /// batch statistics were already counted.
    pub fn is_recomputing(&self) -> bool {
        self.recomputing
    }

    /// This point of the pass, for running a module again later. It shares nothing with the pass,
    /// since it may be freed on another thread, and nobody sees it.
    pub(super) fn recomputing(&self) -> Self {
        Self {
            policy: self.policy,
            training: self.training,
            recomputing: true,
            dropout: self.dropout,
            checkpointing: match &self.checkpointing {
                Checkpointing::Declared => Checkpointing::Declared,
                // What was chosen or measured is not looked into.
                _ => Checkpointing::Off,
            },
            islands: Rc::new(self.islands.as_ref().clone()),
            path: self.path.clone(),
            plan: self.plan.clone(),
            observer: Observer::Nobody,
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

    /// Runs the child `name` on `input` in its precision region.
    ///
    /// # Errors
    /// The child's error, with the path of the innermost module that failed.
    pub fn call<M: Module + ?Sized>(
        &self,
        name: &str,
        region: Option<Region>,
        module: &M,
        input: &Tensor,
    ) -> Result<Tensor> {
        let parent = self.enter(name);
        self.run(region, module, input, parent)
    }

    /// [`call`](Self::call) for the child at `index` of a container.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn call_nth<M: Module + ?Sized>(
        &self,
        index: usize,
        module: &M,
        input: &Tensor,
    ) -> Result<Tensor> {
        let parent = self.enter_nth(index);
        self.run(None, module, input, parent)
    }

    /// Whether the children at `places` may run in one: nobody wants to see the tensors between them,
    /// and none has a region of its own.
    pub(super) fn is_plain(&self, mut places: Range<usize>) -> bool {
        let has_island = |place| {
            let parent = self.enter_nth(place);
            let has = self.has_island();
            self.leave(parent);
            has
        };
        !self.is_watched() && (self.islands.is_empty() || !places.any(has_island))
    }

    /// Runs `layers`, the first of them at `place`, in one by `run`, under the path of the first. What
    /// is given at last has the dtype that each of them gives. `None` where `run` cannot.
    pub(super) fn call_fused<M: Module>(
        &self,
        layers: &[M],
        place: usize,
        run: impl FnOnce() -> Result<Option<Tensor>>,
    ) -> Result<Option<Tensor>> {
        let parent = self.enter_nth(place);
        let result = run().map_err(|error| error.at(&self.path.borrow()));
        self.leave(parent);
        let output = result?;
        if let (Observer::Dtypes(probe), Some(output)) = (&self.observer, &output) {
            for (place, layer) in (place..).zip(layers) {
                let parent = self.enter_nth(place);
                self.tell(&**probe, layer, self.plan.get(), output);
                self.leave(parent);
            }
        }
        Ok(output)
    }

    /// Runs the child `name` by `run`, in one with what stands before or behind it and has no name.
    /// `None` where somebody wants to see the tensors between them, the child has a region of its own,
    /// or `run` cannot.
    pub(super) fn call_with<M: Module>(
        &self,
        name: &str,
        module: &M,
        run: impl FnOnce() -> Result<Option<Tensor>>,
    ) -> Result<Option<Tensor>> {
        let parent = self.enter(name);
        let result = match self.is_watched() || self.has_island() {
            true => Ok(None),
            false => run().map_err(|error| error.at(&self.path.borrow())),
        };
        if let (Observer::Dtypes(probe), Ok(Some(output))) = (&self.observer, &result) {
            self.tell(&**probe, module, self.plan.get(), output);
        }
        self.leave(parent);
        result
    }

    /// Whether somebody looks at each tensor.
    fn is_watched(&self) -> bool {
        matches!(self.observer, Observer::Tensors(_))
    }

    /// Whether the module at the path was given a region.
    fn has_island(&self) -> bool {
        self.islands.contains_key(self.path.borrow().as_str())
    }

    /// Runs an expression on `input` in a precision region.
    ///
    /// # Errors
    /// When a cast or `body` fails.
    pub fn region(
        &self,
        region: Region,
        input: &Tensor,
        body: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let outer = self.plan.get();
        let plan = outer.enter(region, self.policy.precision);
        self.plan.set(plan);
        let output = plan.run(outer, self.policy.device, input, body);
        self.plan.set(outer);
        output
    }

    fn run<M: Module + ?Sized>(
        &self,
        region: Option<Region>,
        module: &M,
        input: &Tensor,
        parent: usize,
    ) -> Result<Tensor> {
        let outer = self.plan.get();
        let region = self.islands.get(self.path.borrow().as_str()).copied().or(region);
        let plan = match region {
            None => outer,
            Some(region) => outer.enter(region, self.policy.precision),
        };
        self.plan.set(plan);
        let result = plan.run(outer, self.policy.device, input, |input| {
            let output = module.forward(input, self)?;
            match &self.observer {
                Observer::Nobody => {}
                Observer::Dtypes(probe) => self.tell(&**probe, module, plan, &output),
                Observer::Tensors(probe) => {
                    let (path, op) = (&*self.path.borrow(), module.op());
                    let rerun = |input: &Tensor| module.forward(input, &self.recomputing());
                    probe.ran(&Call { path, op, plan, input, output: &output, rerun: &rerun });
                }
            }
            Ok(output)
        });
        self.plan.set(outer);
        let result = result.map_err(|error| error.at(&self.path.borrow()));
        self.leave(parent);
        result
    }

    /// Tells of the module at the path.
    fn tell<M: Module + ?Sized>(
        &self,
        probe: &dyn DtypeProbe,
        module: &M,
        plan: RegionPlan,
        output: &Tensor,
    ) {
        let (path, op, kind) = (&*self.path.borrow(), module.op(), output.kind());
        probe.gave(&Given { path, op, plan, kind });
    }

    /// Appends a name to the path; returns the length to cut back to.
    fn enter(&self, name: &str) -> usize {
        let mut path = self.path.borrow_mut();
        let parent = path.len();
        if parent > 0 {
            path.push('.');
        }
        path.push_str(name);
        parent
    }

    fn enter_nth(&self, index: usize) -> usize {
        self.enter(itoa::Buffer::new().format(index))
    }

    /// Cuts the path back to this length.
    fn leave(&self, parent: usize) {
        self.path.borrow_mut().truncate(parent);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        nn::{Linear, LinearConfig, Op, Relu},
        precision::Precision,
    };

    #[derive(Default)]
    struct Told(RefCell<Vec<(String, Op, Kind, Kind)>>);

    impl DtypeProbe for Told {
        fn gave(&self, given: &Given<'_>) {
            let Given { path, op, plan, kind } = *given;
            self.0.borrow_mut().push((path.to_owned(), op, plan.compute, kind));
        }
    }

    impl Probe for Told {
        fn ran(&self, _: &Call<'_>) {}
    }

    /// Layers that run in one are told of under their own places, and of none where they cannot; the
    /// path is then as before.
    #[test]
    fn layers_in_one_are_told_of_one_by_one() -> Result<()> {
        let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
        let layers: [Box<dyn Module>; 2] =
            [Box::new(Relu), Box::new(Linear::new(LinearConfig::new(1, 1))?)];
        let told = Rc::new(Told::default());
        let cx = Context::new(policy, true).with_dtype_probe(told.clone());
        cx.enter("model");
        assert!(cx.call_fused(&layers, 3, || Ok(None))?.is_none());
        assert_eq!(told.0.take(), []);
        let output = || Ok(Some(Tensor::f_zeros([1], (Kind::Half, Device::Cpu))?));
        assert!(cx.call_fused(&layers, 3, output)?.is_some());
        let row = |path: &str, op| (path.to_owned(), op, Kind::BFloat16, Kind::Half);
        assert_eq!(told.0.take(), [row("model.3", Op::Other), row("model.4", Op::Matmul)]);
        assert_eq!(&*cx.path(), "model");
        Ok(())
    }

    /// A probe of tensors and a region keep layers apart; a probe of dtypes does not.
    #[test]
    fn who_looks_decides_what_may_run_in_one() {
        let policy = Policy::new(Precision::F32True, Device::Cpu);
        let cx = || Context::new(policy, true);
        let island = BTreeMap::from([("1".to_owned(), Region::Fp32)]);
        assert!(cx().is_plain(0..3));
        assert!(cx().with_dtype_probe(Rc::new(Told::default())).is_plain(0..3));
        assert!(!cx().with_probe(Rc::new(Told::default())).is_plain(0..3));
        let islands = cx().with_islands(Rc::new(island));
        assert!(!islands.is_plain(0..3) && islands.is_plain(2..3));
    }
}
