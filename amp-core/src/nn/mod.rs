//! Layers, and the traits that they implement. [`Visit`] lists the tensors of a layer with their
//! names. [`Module`] runs a layer whose input is one tensor and whose output is one tensor.
//! [`Forward`] runs any other layer.
//!
//! As in PyTorch, layers own ordinary tensors. The name of a tensor is its path in the struct
//! (`model.0.weight`), so PyTorch and this crate use the same names. Initial values are random
//! numbers from libtorch's global generator, computed in f32 on the CPU, in the order in which
//! PyTorch computes them. Therefore the same seed gives the same initial weights in every precision
//! and on every device.

mod activation;
mod attention;
mod check;
mod child;
mod container;
mod context;
mod conv;
mod ddpm;
mod dropout;
mod embedding;
mod forward;
mod fractional_pool;
mod fused;
mod group_norm;
pub mod init;
mod linear;
mod lp_pool;
mod norm;
mod norm_relu;
mod ordered;
mod output;
mod pad;
mod parameters;
mod part;
mod planted;
mod pool;
mod probe;
mod recompute;
mod recurrent;
mod residual;
mod resize;
mod response_norm;
mod shape;
mod sinusoidal;
mod sizes;
mod transformer;
mod two_inputs;
mod unpool;

#[doc(hidden)]
pub use crate::ffi::{DroppedWeights, DroppedWeightsPass, OperatorDtypes, OperatorPass};
pub use crate::parameter::Parameter;
pub use activation::{
    Celu, CeluConfig, Elu, EluConfig, Gelu, GeluTanh, Glu, GluConfig, Hardshrink, HardshrinkConfig,
    Hardsigmoid, Hardswish, Hardtanh, HardtanhConfig, Identity, LeakyRelu, LeakyReluConfig,
    LogSigmoid, LogSoftmax, Mish, Prelu, PreluConfig, Relu, Relu6, Rrelu, RreluConfig, Selu,
    Sigmoid, Silu, Softmax, Softmin, Softplus, SoftplusConfig, Softshrink, SoftshrinkConfig,
    Softsign, Tanh, Tanhshrink, Threshold,
};
pub use attention::{
    AttentionMask, AttentionOptions, KvCache, MultiheadAttention, MultiheadAttentionConfig,
    RotaryEmbedding, RotaryEmbeddingConfig, RotaryPairing, alibi_bias, alibi_slopes,
    causal_attention, scaled_dot_product_attention, split_heads,
};
pub(crate) use check::{names_are_unique, parameters_require_gradients};
pub use child::Child;
pub use container::Sequential;
pub use context::Context;
#[doc(hidden)]
pub use context::with_rounded_gradient;
pub(crate) use context::{Evaluating, take_trained_in_evaluation};
pub use conv::{
    Conv, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvConfig,
    ConvTranspose, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig,
    ConvTranspose3d, ConvTranspose3dConfig, ConvTransposeConfig, Padding, PaddingMode,
};
pub use ddpm::DdpmSchedule;
pub use dropout::{AlphaDropout, ChannelDropout, Dropout, FeatureAlphaDropout, StochasticDepth};
pub use embedding::{BagMode, Embedding, EmbeddingBag, EmbeddingBagConfig, EmbeddingConfig};
pub use forward::Forward;
pub use fractional_pool::{
    FractionalMaxPool, FractionalMaxPool2d, FractionalMaxPool2dConfig, FractionalMaxPool3d,
    FractionalMaxPool3dConfig, FractionalMaxPoolConfig,
};
#[doc(hidden)]
pub use fused::Fusable;
pub use group_norm::{
    GroupNorm, GroupNormConfig, InstanceNorm, InstanceNormConfig, RmsNorm, RmsNormConfig,
};
pub use init::Init;
#[doc(hidden)]
pub use init::own_tensor;
pub use linear::{Activation, Linear, LinearConfig, linear};
pub use lp_pool::{
    LpPool, LpPool1d, LpPool1dConfig, LpPool2d, LpPool2dConfig, LpPool3d, LpPool3dConfig,
    LpPoolConfig,
};
pub use norm::{BatchNorm, BatchNormConfig, LayerNorm, LayerNormConfig, NormalizedShape};

#[doc(hidden)]
pub use output::{AtOutput, loss_and_metrics_of_output, loss_of_output};
#[doc(hidden)]
pub use pad::{
    CircularPad1d, CircularPad2d, CircularPad3d, ConstantPad, ConstantPad1d, ConstantPad2d,
    ConstantPad3d, ReflectionPad1d, ReflectionPad2d, ReflectionPad3d, ReplicationPad1d,
    ReplicationPad2d, ReplicationPad3d, Sides, ZeroPad1d, ZeroPad2d, ZeroPad3d,
};
pub use parameters::{Role, clear_gradients, named_tensors, parameters, place};
pub(crate) use parameters::{changed_in_forward, parameters_in_regions};
pub use part::{PartOfAny, PartOfChild, Within};
#[doc(hidden)]
pub use planted::{FaultyLayer, FusedTimes, LayerFault};
pub use pool::{
    AdaptiveAvgPool, AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool,
    AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d, AvgPool, AvgPool1d, AvgPool1dConfig,
    AvgPool2d, AvgPool2dConfig, AvgPool3d, AvgPool3dConfig, AvgPoolConfig, MaxPool, MaxPool1d,
    MaxPool1dConfig, MaxPool2d, MaxPool2dConfig, MaxPool3d, MaxPool3dConfig, MaxPoolConfig,
};
pub(crate) use probe::Trace;
pub use probe::{
    Call, Casts, Draw, DtypeProbe, Group, GroupProbe, ModuleOutput, Probe, Product, Substitute,
};
pub(crate) use recompute::{Cell, Survey};
pub use recompute::{Checkpoint, Segment};
pub use recurrent::{
    Gru, GruCell, GruCellConfig, GruConfig, Lstm, LstmCell, LstmCellConfig, LstmConfig, Rnn,
    RnnCell, RnnCellConfig, RnnConfig, RnnNonlinearity,
};
pub use resize::{
    Interpolation, PerDimension, PixelShuffle, PixelUnshuffle, Upsample, UpsampleConfig,
};
pub use response_norm::{LocalResponseNorm, LocalResponseNormConfig};
pub use shape::{
    ChannelShuffle, Flatten, FlattenConfig, Fold, FoldConfig, Unflatten, Unfold, UnfoldConfig,
};
pub use sinusoidal::SinusoidalEmbedding;
pub use sizes::Sizes;
pub use transformer::{
    FeedForward, Transformer, TransformerConfig, TransformerDecoder, TransformerDecoderConfig,
    TransformerDecoderLayer, TransformerDecoderLayerConfig, TransformerEncoder,
    TransformerEncoderConfig, TransformerEncoderLayer, TransformerEncoderLayerConfig,
    TransformerLayerConfig, TransformerStackConfig,
};
pub use two_inputs::{
    Bilinear, BilinearConfig, CosineSimilarity, CosineSimilarityConfig, PairwiseDistance,
    PairwiseDistanceConfig,
};
pub use unpool::{
    MaxUnpool, MaxUnpool1d, MaxUnpool1dConfig, MaxUnpool2d, MaxUnpool2dConfig, MaxUnpool3d,
    MaxUnpool3dConfig, MaxUnpoolConfig,
};

use std::sync::Arc;

use tch::Tensor;

pub use crate::precision::{Arguments, Kept, Tensors};
use crate::{Result, precision::Region};

/// The kind of computation that a layer itself does, without its children. A [`DtypeProbe`] needs
/// it to check the dtypes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A matrix product or a convolution. The output has the dtype in which the product is
    /// computed.
    Matmul,
    /// Any other computation.
    Other,
}

/// A layer, a block or a model that lists its tensors with their names.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{Role, Visit, Visitor, visit_child},
///     prelude::*,
/// };
///
/// /// A layer and a factor.
/// struct Scaled {
///     factor: Tensor,
///     inner: Linear,
/// }
///
/// impl Visit for Scaled {
///     fn visit(&self, visitor: &mut dyn Visitor) {
///         visitor.tensor("factor", &self.factor, Role::Parameter);
///         visit_child(visitor, "inner", None, &self.inner);
///     }
/// }
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer: `Visit` is not implemented for it",
    note = "derive `Module` for a struct of layers, or implement `Visit` and `Module`"
)]
pub trait Visit {
    /// Calls `visitor` for every parameter, buffer and child, in order of declaration.
    fn visit(&self, visitor: &mut dyn Visitor);
}

/// A module whose input is one tensor and whose output is one tensor.
///
/// [`derive(Module)`](derive@crate::Module) and
/// [`derive(LightningModule)`](derive@crate::LightningModule) implement this trait for structs
/// whose fields are modules.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a module with one input and one output: `Module` is not implemented for it",
    note = "to run a module with other inputs, call it in a `#[forward(|x, mask| …)]` closure"
)]
pub trait Module: Visit {
    /// Runs the module on `input`. Run child modules by [`Context::call`], which applies their
    /// precision regions, and tracks the path for errors and probes.
    ///
    /// # Errors
    /// When libtorch refuses an operation, for example because shapes do not match.
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor>;

    /// Returns the kind of computation that the module itself does, without its children.
    fn op(&self) -> Op {
        Op::Other
    }

    /// Returns the role that this layer can have in a group of fused layers.
    #[doc(hidden)]
    fn fusable(&self) -> Fusable<'_> {
        Fusable::Other
    }

    /// Returns the full name of the module's type. For a pointer, returns the name of the type to
    /// which it points.
    #[doc(hidden)]
    fn type_name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Returns another `Arc` of the module, so that the backward pass can run the module again.
    /// Returns `None` if the module cannot be shared. Under a memory budget, a layer can be
    /// recomputed only if this method returns an `Arc`.
    fn shared(&self) -> Option<Arc<dyn Module>> {
        None
    }
}

/// Receives the tensors and the children of a module.
pub trait Visitor {
    /// Enters the child `name`. All tensors and children that follow, until the matching call of
    /// `leave`, belong to this child. If there is a precision region `region`, all of them are in
    /// this region.
    fn enter(&mut self, name: &str, region: Option<Region>);
    /// Leaves the child that was entered last and has not been left.
    fn leave(&mut self);
    /// Receives a tensor of the current module (the child that was entered last and has not been
    /// left).
    fn tensor(&mut self, name: &str, tensor: &Tensor, role: Role);
    /// Receives a parameter that the forward pass itself changes in training, as an embedding with
    /// `max_norm` does. When the trainer skips or repeats a step, it restores such a parameter. The
    /// default implementation calls [`tensor`](Self::tensor).
    fn changed_in_forward(&mut self, name: &str, tensor: &Tensor) {
        self.tensor(name, tensor, Role::Parameter);
    }
}

/// Visits a child module: calls `enter` with the child's name, visits the child's tensors and
/// children, and calls `leave`.
pub fn visit_child<M: Visit + ?Sized>(
    visitor: &mut dyn Visitor,
    name: &str,
    region: Option<Region>,
    child: &M,
) {
    visitor.enter(name, region);
    child.visit(visitor);
    visitor.leave();
}

/// Implements the methods of [`Module`] for a smart pointer by calling those of the module to which
/// it points.
macro_rules! as_the_module {
    () => {
        fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
            (**self).forward(input, cx)
        }

        fn op(&self) -> Op {
            (**self).op()
        }

        fn fusable(&self) -> Fusable<'_> {
            (**self).fusable()
        }

        fn type_name(&self) -> &'static str {
            (**self).type_name()
        }
    };
}

impl<M: Visit + ?Sized> Visit for Box<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        (**self).visit(visitor);
    }
}

impl<M: Visit + ?Sized> Visit for Arc<M> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        (**self).visit(visitor);
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    as_the_module!();

    fn shared(&self) -> Option<Arc<dyn Module>> {
        (**self).shared()
    }
}

impl<M: Module + ?Sized + 'static> Module for Arc<M> {
    as_the_module!();

    fn shared(&self) -> Option<Arc<dyn Module>> {
        Some(Arc::new(self.clone()))
    }
}
