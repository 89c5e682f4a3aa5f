//! Runs the output layer of a model, or leaves it to the loss.

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
    /// Runs the child `name`, whose output is the output of `model`, as [`call`](Self::call) does.
    /// The child must declare no precision region. If the loss computes this layer itself, fused
    /// with the loss, this function does not run the layer, and returns an undefined tensor.
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

    /// Returns a guard for a call of `function`, if the result of the call is the output of
    /// `model`. While the guard exists, [`linear`](crate::nn::linear) may leave its computation to
    /// the loss.
    #[doc(hidden)]
    pub fn at_output<R: ?Sized, F: 'static>(&self, model: &R, function: &F) -> AtOutput {
        match self.may_defer() {
            true => AtOutput::begin(model, function),
            false => AtOutput::none(),
        }
    }

    /// Returns whether the loss may compute the output layer. This requires that fused layers are
    /// allowed, that the model is not part of another model, that no precision region applies, that
    /// no observer reads the output of the layer, and that no fault is planted.
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
