//! A parameter of a model, with its name.

use tch::Tensor;

/// A parameter of a model, under its dotted name.
#[derive(Debug)]
pub struct Parameter {
    /// The name that the parameter has in PyTorch's state_dict, such as `model.0.weight`.
    pub name: String,
    /// A handle to the module's tensor: it shares the tensor's memory.
    pub tensor: Tensor,
}

/// A guard. While the guard exists, the parameters in it require no gradient.
pub(crate) struct Frozen(Vec<Tensor>);

impl Frozen {
    pub(crate) fn new(tensors: Vec<Tensor>) -> Self {
        let mut frozen = Self::none();
        frozen.replace(tensors);
        frozen
    }

    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Unfreezes the parameters that this guard froze, and freezes `tensors` instead.
    pub(crate) fn replace(&mut self, tensors: Vec<Tensor>) {
        self.0.iter().for_each(|tensor| drop(tensor.set_requires_grad(true)));
        tensors.iter().for_each(|tensor| drop(tensor.set_requires_grad(false)));
        self.0 = tensors;
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.replace(Vec::new());
    }
}
