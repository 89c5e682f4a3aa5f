//! Runs the modules of a forward pass: tracks their paths, and applies their precision regions.

use tch::{Kind, Tensor};

use super::{Context, Observer};
use crate::{
    Error, Result,
    error::Complaint,
    ffi::{self, ModuleOfOperators, WatchedBroadcasts},
    nn::{
        Forward,
        child::Place,
        parameters, planted,
        probe::{Call, DtypeProbe, ModuleOutput, Probe},
    },
    precision::{Arguments, Kept, Region, RegionPlan, Tensors, dtype_name, is_floating},
};

/// The inputs of the module `M`.
type Inputs<'a, M> = <<M as Forward>::Input as Arguments>::At<'a>;

impl Context {
    /// Runs the module `name`, a child of the running module, on `input` and in the precision
    /// region `region`. The module's input must be a single tensor. For modules with other inputs,
    /// use [`Child`](crate::nn::Child).
    ///
    /// # Errors
    /// When the child fails; the error contains the path of the innermost module that failed.
    pub fn call<M: Forward<Input = (&'static Tensor,)> + ?Sized>(
        &self,
        name: &str,
        region: Option<Region>,
        module: &M,
        input: &Tensor,
    ) -> Result<M::Output> {
        let (parent, outer) = (self.enter(name), self.plan.get());
        self.run(self.plan_of(outer, region), outer, module, (input,), parent)
    }

    /// Runs the child at `index` of a container, as [`call`](Self::call) runs a child by its name.
    ///
    /// # Errors
    /// When [`call`](Self::call) would fail.
    pub fn call_nth<M: Forward<Input = (&'static Tensor,)> + ?Sized>(
        &self,
        index: usize,
        module: &M,
        input: &Tensor,
    ) -> Result<M::Output> {
        let (parent, outer) = (self.enter_nth(index), self.plan.get());
        self.run(self.plan_of(outer, None), outer, module, (input,), parent)
    }

    /// Runs `module` after appending the names of all `places` to the current path. Each place is a
    /// child of the previous place.
    pub(in crate::nn) fn call_at<'p, M: Forward + ?Sized>(
        &self,
        places: impl Iterator<Item = &'p Place<'p>>,
        module: &M,
        inputs: Inputs<'_, M>,
    ) -> Result<M::Output> {
        let (parent, outer) = (self.path.borrow().len(), self.plan.get());
        let mut plan = outer;
        for place in places {
            let mut declared = place.region;
            for name in place.path.split('.') {
                self.enter(name);
                plan = self.plan_of(plan, declared.take());
            }
            if let Some(index) = place.index {
                self.enter_nth(index);
                plan = self.plan_of(plan, None);
            }
        }
        self.run(plan, outer, module, inputs, parent)
    }

    /// Returns the dtypes (the plan) in which the module at the current path computes. If there is
    /// a precision override for this path, the override applies. Otherwise the region `declared` by
    /// the parent applies. If there is neither, the plan is `outer`, the plan of the surrounding
    /// module.
    fn plan_of(&self, outer: RegionPlan, declared: Option<Region>) -> RegionPlan {
        match self.overrides.get(self.path.borrow().as_str()).copied().or(declared) {
            None => outer,
            Some(region) => outer.enter(region, self.policy.precision),
        }
    }

    /// Returns whether the observer reads or replaces the inputs and outputs of modules.
    pub(super) fn is_watched(&self) -> bool {
        matches!(self.observer, Observer::Tensors(_) | Observer::Substitutes(_))
    }

    /// Returns whether a precision override names the module at the current path.
    pub(super) fn has_override(&self) -> bool {
        self.overrides.contains_key(self.path.borrow().as_str())
    }

    /// Calls `body` in the precision region `region`, with `input` cast to the dtype of this
    /// region.
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
        self.report_products();
        self.plan.set(plan);
        let output = plan.run::<&'static Tensor, _>(outer, self.policy.device, input, body);
        self.report_products();
        self.plan.set(outer);
        output
    }

    /// Runs the module at the current path in the dtypes of `plan`, and then removes the module's
    /// name from the path.
    fn run<M: Forward + ?Sized>(
        &self,
        plan: RegionPlan,
        outer: RegionPlan,
        module: &M,
        inputs: Inputs<'_, M>,
        parent: usize,
    ) -> Result<M::Output> {
        self.plan.set(plan);
        let device = self.policy.device;
        let _module = ModuleOfOperators::enter(&self.path.borrow(), module.own_type_name());
        let given = M::Input::again(&inputs);
        let result = plan.run::<M::Input, _>(outer, device, given, |inputs| match &self.observer {
            Observer::Nobody | Observer::Groups(_) => self.forward(module, inputs),
            Observer::Dtypes(probe) => {
                let output = self.forward(module, inputs)?;
                self.report_output(&**probe, module, plan, &output)?;
                Ok(output)
            }
            Observer::Tensors(probe) => self.report_call(&**probe, module, plan, inputs),
            Observer::Trace(trace) => {
                let (kept, mut sizes) = (Kept::default(), Vec::new());
                M::Input::each(&inputs, &kept, &mut |tensor| {
                    sizes.push(tensor.size());
                    Ok(tensor.shallow_clone())
                })?;
                trace.began(&self.path(), module.own_type_name(), sizes);
                let output = module.forward_with(inputs, self)?;
                trace.ended(all(&output)?.iter().map(Tensor::size).collect());
                Ok(output)
            }
            Observer::Substitutes(other) => {
                let kept = Kept::default();
                let mut given = |input: &Tensor| other.given(&self.path.borrow(), input);
                let inputs = M::Input::each(&inputs, &kept, &mut given)?;
                let output = self.forward(module, inputs)?;
                output.each(&mut |output| other.returned(&self.path.borrow(), output))
            }
        });
        self.report_products();
        self.plan.set(outer);
        let hint = |complaint| self.dtype_hint(complaint, &kinds::<M>(&inputs));
        let result = result.map_err(|error| error.with_dtype_hint(hint).at(&self.path.borrow()));
        self.leave(parent);
        result
    }

    /// Returns a hint for an error about the dtypes of tensors in a module: how such an error arises
    /// and how to avoid it. `inputs` are the dtypes of the module's inputs.
    fn dtype_hint(&self, complaint: Complaint, inputs: &[Kind]) -> Option<String> {
        let first = dtype_name(*inputs.first()?);
        let is_whole = !inputs.iter().any(|kind| is_floating(*kind));
        match complaint {
            Complaint::NoIds => Some(format!(
                "; ids must be int64, but the input is {first}: convert it in the data set, as with \
                 `f_to_kind(Kind::Int64)?`"
            )),
            Complaint::Mixed | Complaint::Unsupported if is_whole => Some(format!(
                "; the input is {first}, but this layer computes with floating-point numbers: \
                 convert it in the data set, as with `f_to_kind(Kind::Float)?`, or, if the model \
                 makes it, to the dtype of its weights"
            )),
            Complaint::Mixed => Some(format!(
                "; under {} give each tensor that you create the dtype of the tensor that you \
                 combine it with, as in `.f_to_kind(x.kind())`: an operation on tensors of two \
                 dtypes returns the wider dtype",
                self.policy.precision
            )),
            Complaint::Unsupported => None,
        }
    }

    /// Runs the module at the current path, and returns its output. If `cargo amp selftest` has
    /// planted a fault in this module, the fault changes the output (see `planted`).
    fn forward<M: Forward + ?Sized>(&self, module: &M, inputs: Inputs<'_, M>) -> Result<M::Output> {
        let output = module.forward_with(inputs, self)?;
        if WatchedBroadcasts::is_on() {
            note_output(module, &output)?;
        }
        planted::of_layer(&self.path.borrow(), output)
    }

    /// Reports the dtypes of the outputs of the module at the current path to `probe`.
    pub(super) fn report_output<M: Forward + ?Sized>(
        &self,
        probe: &dyn DtypeProbe,
        module: &M,
        plan: RegionPlan,
        output: &M::Output,
    ) -> Result<()> {
        let (path, op) = (&*self.path.borrow(), module.own_op());
        output.each(&mut |output| {
            probe.module_output(&ModuleOutput { path, op, plan, kind: output.kind() });
            Ok(output.shallow_clone())
        })?;
        Ok(())
    }

    /// Runs the module at the current path, and calls the probe once for each output of the module.
    /// Each call also gets the module's first floating-point input.
    fn report_call<M: Forward + ?Sized>(
        &self,
        probe: &dyn Probe,
        module: &M,
        plan: RegionPlan,
        inputs: Inputs<'_, M>,
    ) -> Result<M::Output> {
        let (kept, mut tensors) = (Kept::default(), Vec::new());
        let again = M::Input::each(&inputs, &kept, &mut |tensor| {
            tensors.push(tensor.shallow_clone());
            Ok(tensor.shallow_clone())
        })?;
        let output = self.forward(module, inputs)?;
        let shown = tensors.iter().position(|tensor| is_floating(tensor.kind())).unwrap_or(0);
        let Some(input) = tensors.get(shown) else { return Ok(output) };
        let (path, op) = (&*self.path.borrow(), module.own_op());
        for (at, given) in all(&output)?.iter().enumerate() {
            let rerun_in = |other: &Tensor, cx: &Self| {
                let (kept, mut place) = (Kept::default(), 0..);
                let inputs = M::Input::each(&again, &kept, &mut |tensor| {
                    let is_shown = place.next() == Some(shown);
                    Ok(if is_shown { other.shallow_clone() } else { tensor.shallow_clone() })
                })?;
                let mut outputs = all(&planted::of_layer(path, module.forward_with(inputs, cx)?)?)?;
                match at < outputs.len() {
                    true => Ok(outputs.swap_remove(at)),
                    false => Err(Error::config(format!(
                        "`{path}` returned fewer tensors when a probe ran it again on another \
                         input: return the same number of tensors for every input"
                    ))),
                }
            };
            let rerun = |other: &Tensor| rerun_in(other, &self.recomputing());
            let rerun_with = |other: &Tensor, substitute| {
                rerun_in(other, &self.recomputing().with_substitute(substitute))
            };
            ffi::drop_cached_cast(given)?;
            let output = given;
            probe.ran(&Call {
                path,
                op,
                plan,
                input,
                output,
                rerun: &rerun,
                rerun_with: &rerun_with,
            });
        }
        Ok(output)
    }

    /// Appends a name to the path. Returns the earlier length of the path, which the caller passes
    /// to [`leave`](Self::leave).
    pub(super) fn enter(&self, name: &str) -> usize {
        self.report_products();
        let mut path = self.path.borrow_mut();
        let parent = path.len();
        if parent > 0 {
            path.push('.');
        }
        path.push_str(name);
        parent
    }

    pub(super) fn enter_nth(&self, index: usize) -> usize {
        self.enter(itoa::Buffer::new().format(index))
    }

    /// Shortens the path to `parent` bytes, which removes the name of the child that ran.
    pub(super) fn leave(&self, parent: usize) {
        self.report_products();
        self.path.borrow_mut().truncate(parent);
    }
}

/// Returns the dtypes of the tensors among the inputs of a module.
fn kinds<M: Forward + ?Sized>(inputs: &Inputs<'_, M>) -> Vec<Kind> {
    let (kept, mut kinds) = (Kept::default(), Vec::new());
    // The closure returns no error, so neither does the call.
    let _ = M::Input::each(inputs, &kept, &mut |tensor| {
        kinds.push(tensor.kind());
        Ok(tensor.shallow_clone())
    });
    kinds
}

/// Returns shallow clones of the tensors that `value` holds.
fn all(value: &impl Tensors) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    value.each(&mut |tensor| {
        tensors.push(tensor.shallow_clone());
        Ok(tensor.shallow_clone())
    })?;
    Ok(tensors)
}

/// Marks the outputs of a module as outputs of the model for [`WatchedBroadcasts`], if the module
/// has weights that are trained. The watch cannot find this out itself where this crate's kernels
/// compute the outputs, because it sees only the operators of libtorch.
fn note_output<M: Forward + ?Sized>(module: &M, output: &M::Output) -> Result<()> {
    if parameters(module).iter().any(|own| own.tensor.requires_grad()) {
        all(output)?.iter().try_for_each(WatchedBroadcasts::note_output)?;
    }
    Ok(())
}
