//! A trained tensor with its name.

use tch::Tensor;

/// A trained tensor under its dotted name.
#[derive(Debug)]
pub struct Parameter {
    /// As in PyTorch's state_dict: `model.0.weight`.
    pub name: String,
    /// A handle of the module's own tensor.
    pub tensor: Tensor,
}
