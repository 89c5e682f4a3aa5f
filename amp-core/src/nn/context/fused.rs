//! Modules that run in one with their neighbours.

use std::ops::Range;

use tch::Tensor;

use super::{Context, Observer};
use crate::{Result, nn::Module};

impl Context {
    /// Whether the children at `places` may run in one: nobody wants to see the tensors between them,
    /// and none has a region of its own.
    pub(in crate::nn) fn is_plain(&self, mut places: Range<usize>) -> bool {
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
    pub(in crate::nn) fn call_fused<M: Module>(
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
                self.tell(&**probe, layer, self.plan.get(), output)?;
                self.leave(parent);
            }
        }
        Ok(output)
    }

    /// Runs the child `name` by `run`, in one with what stands before or behind it and has no name.
    /// `None` where somebody wants to see the tensors between them, the child has a region of its own,
    /// or `run` cannot.
    pub(in crate::nn) fn call_with<M: Module>(
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
            self.tell(&**probe, module, self.plan.get(), output)?;
        }
        self.leave(parent);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

    use tch::{Device, Kind};

    use super::*;
    use crate::{
        nn::{Call, DtypeProbe, Given, Linear, LinearConfig, Op, Probe, Relu},
        precision::{Policy, Precision, Region},
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
