//! Runs modules fused with neighbouring modules or operations.

use std::ops::Range;

use tch::Tensor;

use super::{Context, Observer};
use crate::{
    Error, Result, ffi,
    nn::{Module, container, planted::of_group, probe::Group},
};

impl Context {
    /// Returns whether the children with the indices `places` of a container may be fused. They may
    /// not be fused if a probe reads the tensors between them, or if a precision override names one
    /// of them.
    pub(in crate::nn) fn is_plain(&self, mut places: Range<usize>) -> bool {
        let has_override = |place| {
            let parent = self.enter_nth(place);
            let has = self.has_override();
            self.leave(parent);
            has
        };
        self.may_fuse() && (self.overrides.is_empty() || !places.any(has_override))
    }

    /// Returns whether any module of the model has a precision override.
    pub(in crate::nn) fn has_overrides(&self) -> bool {
        !self.overrides.is_empty()
    }

    fn may_fuse(&self) -> bool {
        self.fuses && ffi::own_kernels() && !self.is_watched()
    }

    /// Runs `layers` by one fused call of `run`, under the path of the first layer. `place` is the
    /// index of the first layer in its container. If a dtype probe observes the forward pass, it
    /// receives the dtype of the group's output once for each layer. Returns `None` if `run`
    /// returns `None`.
    pub(in crate::nn) fn call_fused<M: Module>(
        &self,
        layers: &[M],
        place: usize,
        input: &Tensor,
        run: impl Fn(&Tensor, &Self) -> Result<Option<Tensor>>,
    ) -> Result<Option<Tensor>> {
        let apart = |inputs: &[&Tensor]| -> Result<Tensor> {
            container::run(layers, place, inputs[0], &self.recomputing().without_fusion())
        };
        let path = |place| {
            let parent = self.enter_nth(place);
            let path = self.path.borrow().clone();
            self.leave(parent);
            path
        };
        let paths = || (place..place + layers.len()).map(path).collect();
        let parent = self.enter_nth(place);
        let result = run(input, self).and_then(of_group);
        let result = result.map_err(|error| error.at(&self.path.borrow()));
        self.leave(parent);
        let output = result?;
        let Some(shown) = &output else { return Ok(None) };
        let fused = |inputs: &[&Tensor]| run(inputs[0], &self.recomputing()).and_then(of_group);
        self.report_group(paths, &[input], shown, &fused, &apart);
        if let Observer::Dtypes(probe) = &self.observer {
            for (place, layer) in (place..).zip(layers) {
                let parent = self.enter_nth(place);
                self.report_output(&**probe, layer, self.plan.get(), shown)?;
                self.leave(parent);
            }
        }
        Ok(output)
    }

    /// Runs the child `name` together with operations before or after it that are not modules and
    /// so have no names. Usually calls `run`, which computes them in one fused call. Calls `apart`,
    /// which computes them one by one, if `run` returns `None`, if fusion is not allowed (for
    /// example because a probe reads the tensors between them), or if a precision override names
    /// the child.
    pub(in crate::nn) fn call_with<M: Module, const N: usize>(
        &self,
        name: &str,
        module: &M,
        inputs: [&Tensor; N],
        run: impl Fn([&Tensor; N], &Self) -> Result<Option<Tensor>>,
        apart: impl Fn([&Tensor; N], &Self) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let parent = self.enter(name);
        let result = match self.may_fuse() && !self.has_override() {
            true => run(inputs, self).and_then(of_group),
            false => Ok(None),
        };
        let result = result.map_err(|error| error.at(&self.path.borrow()));
        if let (Observer::Dtypes(probe), Ok(Some(output))) = (&self.observer, &result) {
            self.report_output(&**probe, module, self.plan.get(), output)?;
        }
        self.leave(parent);
        let Some(output) = result? else { return apart(inputs, self) };
        let fused =
            |inputs: &[&Tensor]| run(given(inputs)?, &self.recomputing()).and_then(of_group);
        let alone =
            |inputs: &[&Tensor]| apart(given(inputs)?, &self.recomputing().without_fusion());
        let path = || {
            let parent = self.enter(name);
            let path = self.path.borrow().clone();
            self.leave(parent);
            vec![path]
        };
        self.report_group(path, &inputs, &output, &fused, &alone);
        Ok(output)
    }

    fn report_group(
        &self,
        paths: impl FnOnce() -> Vec<String>,
        inputs: &[&Tensor],
        output: &Tensor,
        fused: &dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>,
        apart: &dyn Fn(&[&Tensor]) -> Result<Tensor>,
    ) {
        if let Observer::Groups(probe) = &self.observer {
            let paths = &paths();
            probe.ran(&Group { paths, plan: self.plan.get(), inputs, output, fused, apart });
        }
    }
}

fn given<'a, const N: usize>(inputs: &[&'a Tensor]) -> Result<[&'a Tensor; N]> {
    let count = inputs.len();
    <[&Tensor; N]>::try_from(inputs)
        .map_err(|_| Error::config(format!("fused layers need {N} inputs, but got {count}")))
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

    use tch::{Device, Kind};

    use super::*;
    use crate::{
        nn::{Call, DtypeProbe, Linear, LinearConfig, ModuleOutput, Op, Probe, Relu},
        precision::{Policy, Precision, Region},
    };

    #[derive(Default)]
    struct Reports(RefCell<Vec<(String, Op, Kind, Kind)>>);

    impl DtypeProbe for Reports {
        fn module_output(&self, output: &ModuleOutput<'_>) {
            let ModuleOutput { path, op, plan, kind } = *output;
            self.0.borrow_mut().push((path.to_owned(), op, plan.compute, kind));
        }
    }

    impl Probe for Reports {
        fn ran(&self, _: &Call<'_>) {}
    }

    /// Checks that each fused layer is reported to the probe under its path. If the layers cannot
    /// be fused, `call_fused` must report nothing. The context's path must not change.
    #[test]
    fn fused_layers_are_reported_one_by_one() -> Result<()> {
        let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
        let layers: [Box<dyn Module>; 2] =
            [Box::new(Relu), Box::new(Linear::new(LinearConfig::new(1, 1))?)];
        let told = Rc::new(Reports::default());
        let cx = Context::new(policy, true).with_dtype_probe(told.clone());
        cx.enter("model");
        let input = Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?;
        assert!(cx.call_fused(&layers, 3, &input, |_, _| Ok(None))?.is_none());
        assert_eq!(told.0.take(), []);
        let output =
            |_: &Tensor, _: &Context| Ok(Some(Tensor::f_zeros([1], (Kind::Half, Device::Cpu))?));
        assert!(cx.call_fused(&layers, 3, &input, output)?.is_some());
        let row = |path: &str, op| (path.to_owned(), op, Kind::BFloat16, Kind::Half);
        assert_eq!(told.0.take(), [row("model.3", Op::Other), row("model.4", Op::Matmul)]);
        assert_eq!(&*cx.path(), "model");
        Ok(())
    }

    /// Checks that tensor probes and precision overrides prevent the fusion of layers, and that
    /// dtype probes do not.
    #[test]
    fn only_tensor_probes_and_regions_prevent_fusing() {
        let policy = Policy::new(Precision::F32True, Device::Cpu);
        let cx = || Context::new(policy, true);
        let region = BTreeMap::from([("1".to_owned(), Region::Fp32)]);
        assert!(cx().is_plain(0..3));
        assert!(cx().with_dtype_probe(Rc::new(Reports::default())).is_plain(0..3));
        assert!(!cx().with_probe(Rc::new(Reports::default())).is_plain(0..3));
        assert!(!cx().without_fusion().is_plain(0..3));
        let overrides = cx().with_overrides(Rc::new(region));
        assert!(!overrides.is_plain(0..3) && overrides.is_plain(2..3));
    }
}
