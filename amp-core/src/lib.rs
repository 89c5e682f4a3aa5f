//! Mixed-precision training on libtorch: autocast, loss scaling, clipping, precision policies
//! and the trainer. Data flows one way: annotated struct → [`LightningModule`] → [`Trainer`] →
//! [`event::Event`]s → [`record::RunRecord`].

// The derive macros generate code that refers to this crate as `::amp_core`. This line makes the
// path valid inside the crate itself.
extern crate self as amp_core;

mod error;
mod ffi;
mod module;
mod monitor;
mod named;
mod optimizer;
mod parameter;
mod tensor_file;

pub mod callback;
pub mod checkpoint;
pub mod convert;
pub mod data;
pub mod event;
pub mod file;
pub mod generate;
pub mod hardware;
pub mod log;
pub mod logger;
pub mod loss;
pub mod memory;
pub mod metric;
pub mod nn;
pub mod optim;
pub mod precision;
pub mod probe;
pub mod provenance;
pub mod random;
pub mod record;
pub mod state;
pub mod trainer;
pub mod weights;

pub use amp_derive::{Batch, LightningModule, Module};
pub use error::{Error, Result};
pub use module::{Hook, Hyperparameters, LightningModule, LossScope, Step};
pub use nn::{Module, Visit};
pub use tch;
pub use trainer::{Trainer, TrainerConfig};

/// The names that a file with a model imports: `use amp_core::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Batch, Error, Hook, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
        data::{AnyBatch, Batch, BatchType, DataModule, Dataset, MapDataset},
        log::LogOptions,
        loss, metric,
        nn::{
            AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool1d,
            AdaptiveMaxPool2d, AdaptiveMaxPool3d, AlphaDropout, AvgPool1d, AvgPool2d, AvgPool3d,
            BatchNorm, Celu, ChannelDropout, ChannelShuffle, Checkpoint, CircularPad1d,
            CircularPad2d, CircularPad3d, ConstantPad1d, ConstantPad2d, ConstantPad3d, Context,
            Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Dropout,
            Elu, Embedding, EmbeddingBag, Flatten, Fold, Gelu, GeluTanh, Glu, GroupNorm, Gru,
            GruCell, Hardshrink, Hardsigmoid, Hardswish, Hardtanh, Identity, InstanceNorm,
            LayerNorm, LeakyRelu, Linear, LocalResponseNorm, LogSigmoid, LogSoftmax, Lstm,
            LstmCell, MaxPool1d, MaxPool2d, MaxPool3d, MaxUnpool1d, MaxUnpool2d, MaxUnpool3d, Mish,
            MultiheadAttention, PixelShuffle, PixelUnshuffle, Prelu, ReflectionPad1d,
            ReflectionPad2d, ReflectionPad3d, Relu, Relu6, ReplicationPad1d, ReplicationPad2d,
            ReplicationPad3d, RmsNorm, Rnn, RnnCell, RotaryEmbedding, Selu, Sequential, Sigmoid,
            Silu, Softmax, Softmin, Softplus, Softshrink, Softsign, StochasticDepth, Tanh,
            Tanhshrink, Threshold, Transformer, TransformerDecoder, TransformerDecoderLayer,
            TransformerEncoder, TransformerEncoderLayer, Unflatten, Unfold, Upsample, ZeroPad1d,
            ZeroPad2d, ZeroPad3d,
        },
        optim::{OptimizerConfig, Optimizers, TrainingPlan},
        precision::{Gradients, Precision, Region, StepOutcome, Unscaled},
    };
    pub use tch::{Device, Kind, Tensor};
}

/// Names that derived code uses. They are not a public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::{
        Error, Hook, Hyperparameters, LightningModule, Module, Result, Step,
        callback::Mode,
        checkpoint,
        data::{
            AnyBatch, Batch, BatchField, BatchType, FieldRole, field_name, predictions, take_field,
            with_batch,
        },
        hparam,
        log::LogOptions,
        loss, metric,
        module::{LossScope, ManualStep, StepAccess},
        nn,
        nn::{Context, Visit, Visitor, visit_child},
        optim,
        optim::{Interval, OptimizerConfig, Optimizers, ParamGroups, TrainingPlan},
        precision::{Gradients, Region, StepOutcome, Unscaled},
        state::State,
    };
    pub use core::{
        clone::Clone,
        convert::{AsRef, From, Into, TryFrom},
        default::Default,
        iter::Iterator,
        marker::PhantomData,
        ops::FnMut,
        option::Option::{self, None, Some},
        primitive::{bool, f64, str},
        result::Result::{Err, Ok},
        unreachable,
    };
    pub use std::{borrow::Cow, boxed::Box, path::Path, string::ToString, vec, vec::Vec};
    pub use tch::Tensor;
}

#[doc(hidden)]
pub mod hparam;
