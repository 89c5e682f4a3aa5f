//! Runs the output layer of a model, unless the loss computes this layer.

use tch::{Device, Kind, Tensor};

use super::{Context, Observer};
use crate::{
    Result,
    nn::{
        Module,
        fused::Fusable,
        output::{self, AtOutput},
        planted,
    },
    precision::RegionPlan,
};

impl Context {
    /// Runs the child `name`, which is the output layer of `model`, as [`call`](Self::call) does.
    /// The model must declare no precision region for the child, because the loss would not apply
    /// it. If the loss computes this layer, fused with the loss, this function does not run it, and
    /// returns an undefined tensor.
    ///
    /// # Errors
    /// When the child fails; the error contains the child's path.
    #[doc(hidden)]
    pub fn call_output<R: ?Sized, M: Module>(
        &self,
        model: &R,
        name: &str,
        module: &M,
        input: &Tensor,
    ) -> Result<Tensor> {
        if let Fusable::Linear(layer) = module.fusable()
            && output::is_requested(model)
            && self.may_defer()
        {
            let parent = self.enter(name);
            let kind = match self.has_override() {
                true => Ok(None),
                false => output::defer(input, layer.weight(), layer.bias()),
            };
            if let (Ok(Some(kind)), Observer::Dtypes(probe)) = (&kind, &self.observer) {
                self.report_output(&**probe, module, self.plan.get(), &empty(*kind)?)?;
            }
            let kind = kind.map_err(|error| error.at(&self.path.borrow()));
            self.leave(parent);
            if kind?.is_some() {
                return Ok(Tensor::new());
            }
        }
        self.call(name, None, module, input)
    }

    /// Prepares a call of `function` whose result is the output of `model`. While the returned
    /// guard exists and `function` is [`linear`](crate::nn::linear), the function may hand its
    /// tensors to the loss, which then computes the product.
    #[doc(hidden)]
    pub fn at_output<R: ?Sized, F: 'static>(&self, model: &R, function: &F) -> AtOutput {
        match self.may_defer() {
            true => AtOutput::begin(model, function),
            false => AtOutput::none(),
        }
    }

    /// Returns whether the loss may compute the output layer. This requires that fused layers are
    /// allowed, that the model is not part of another model, that no precision region applies, that
    /// no observer reads the output of the layer, and that the self-test has planted no fault.
    fn may_defer(&self) -> bool {
        self.fuses
            && matches!(self.observer, Observer::Nobody | Observer::Dtypes(_))
            && self.path.borrow().is_empty()
            && self.plan.get() == RegionPlan::of(self.policy.precision)
            && !planted::is_planted()
    }
}

/// Returns an empty tensor of this dtype, for a probe that only reads the dtype.
fn empty(kind: Kind) -> Result<Tensor> {
    Ok(Tensor::f_empty([0], (kind, Device::Cpu))?)
}
