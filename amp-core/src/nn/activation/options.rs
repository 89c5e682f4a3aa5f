//! Activations with options.

use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    nn::{Context, Module, Role, Visit, Visitor, init},
};

macro_rules! with_options {
    ($(
        $(#[$doc:meta])*
        $name:ident, $config:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty = $default:expr,)* }
        => |$input:ident, $options:ident| $body:expr;
    )*) => {$(
        #[doc = concat!("The options of [`", stringify!($name), "`].")]
        #[derive(Debug, Clone, Copy)]
        pub struct $config {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        impl $config {
            /// Returns the default options of the same layer in torch.nn.
            #[expect(clippy::new_without_default, reason = "all layers' options begin with `new`")]
            pub fn new() -> Self {
                Self { $($field: $default,)* }
            }
        }

        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            config: $config,
        }

        impl $name {
            /// Creates the layer with the options `config`.
            ///
            /// # Errors
            /// At present this function returns no error. It returns a `Result` like the
            /// constructors of other layers.
            pub fn new(config: $config) -> Result<Self> {
                Ok(Self { config })
            }
        }

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, $input: &Tensor, _: &Context) -> Result<Tensor> {
                let $options = self.config;
                Ok($body)
            }
        }
    )*};
}

with_options! {
    /// x where x is positive, and slope·x elsewhere; nn.LeakyReLU.
    LeakyRelu, LeakyReluConfig {
        /// The factor by which negative values are multiplied.
        negative_slope: f64 = 0.01,
    } => |x, options| {
        // tch's `leaky_relu` is not used, because it supports only a slope of 0.01.
        x.f_where_self(&x.f_gt(0.0)?, &x.f_mul_scalar(options.negative_slope)?)?
    };
    /// x where x is positive, and α·(eˣ - 1) elsewhere; nn.ELU.
    Elu, EluConfig {
        /// The factor α.
        alpha: f64 = 1.0,
    } => |x, options| {
        let negative = x.f_clamp_max(0.0)?.f_expm1()?.f_mul_scalar(options.alpha)?;
        x.f_where_self(&x.f_gt(0.0)?, &negative)?
    };
    /// max(x, 0) + min(α·(e^(x/α) - 1), 0); nn.CELU.
    Celu, CeluConfig {
        /// The factor α.
        alpha: f64 = 1.0,
    } => |x, options| {
        let scaled = x.f_clamp_max(0.0)?.f_div_scalar(options.alpha)?;
        x.f_where_self(&x.f_gt(0.0)?, &scaled.f_expm1()?.f_mul_scalar(options.alpha)?)?
    };
    /// log(1 + e^(β·x))/β, and x where β·x is above the threshold; nn.Softplus.
    Softplus, SoftplusConfig {
        /// The factor β.
        beta: f64 = 1.0,
        /// The value of β·x above which the function returns x.
        threshold: f64 = 20.0,
    } => |x, options| {
        let scaled = x.f_mul_scalar(options.beta)?;
        // In f16, e^(β·x) overflows if β·x is above 11.09. From β·x = 11 on, log(1 + e^(β·x))
        // equals β·x in f16, so a threshold of 11 changes no value.
        let limit = if x.kind() == Kind::Half { 11.0 } else { f64::INFINITY };
        let threshold = options.threshold.min(limit);
        let soft = scaled.f_clamp_max(threshold)?.f_exp()?.f_log1p()?;
        x.f_where_self(&scaled.f_gt(threshold)?, &soft.f_div_scalar(options.beta)?)?
    };
    /// x between the bounds, and the nearer bound elsewhere; nn.Hardtanh.
    Hardtanh, HardtanhConfig {
        /// The lower bound.
        min_val: f64 = -1.0,
        /// The upper bound.
        max_val: f64 = 1.0,
    } => |x, options| {
        let HardtanhConfig { min_val, max_val } = options;
        // `clamp` is not used on x itself, because its gradient is 1 where x equals a bound. In
        // torch the gradient of Hardtanh is 0 there.
        let within = x.f_gt(min_val)?.f_logical_and(&x.f_lt(max_val)?)?;
        x.f_where_self(&within, &x.f_detach()?.f_clamp(min_val, max_val)?)?
    };
    /// x where |x| is above λ, and 0 elsewhere; nn.Hardshrink.
    Hardshrink, HardshrinkConfig {
        /// The threshold λ.
        lambd: f64 = 0.5,
    } => |x, options| x.f_where_scalarother(&x.f_abs()?.f_gt(options.lambd)?, 0.0)?;
    /// x − λ above λ, x + λ below −λ, and 0 elsewhere; nn.Softshrink.
    Softshrink, SoftshrinkConfig {
        /// The threshold λ.
        lambd: f64 = 0.5,
    } => |x, options| x.f_sub(&x.f_clamp(-options.lambd, options.lambd)?)?;
    /// Splits a dimension into two halves, and multiplies the first half by the sigmoid of the
    /// second half; nn.GLU.
    Glu, GluConfig {
        /// The dimension that is split into two halves.
        dim: i64 = -1,
    } => |x, options| x.f_glu(options.dim)?;
}

macro_rules! over_a_dimension {
    ($($(#[$doc:meta])* $name:ident => |$input:ident, $dim:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            dim: i64,
        }

        impl $name {
            /// Creates a layer that computes its sums over the dimension `dim`; -1 is the last
            /// dimension.
            ///
            /// # Errors
            /// At present this function returns no error. It returns a `Result` like the
            /// constructors of other layers.
            pub fn new(dim: i64) -> Result<Self> {
                Ok(Self { dim })
            }
        }

        impl Visit for $name {
            fn visit(&self, _: &mut dyn Visitor) {}
        }

        impl Module for $name {
            fn forward(&self, $input: &Tensor, _: &Context) -> Result<Tensor> {
                let $dim = self.dim;
                Ok($body)
            }
        }
    )*};
}

over_a_dimension! {
    /// eˣ/Σeˣ over a dimension; nn.Softmax.
    Softmax => |x, dim| x.f_softmax(dim, None)?;
    /// e⁻ˣ/Σe⁻ˣ over a dimension; nn.Softmin.
    Softmin => |x, dim| x.f_neg()?.f_softmax(dim, None)?;
    /// log(eˣ/Σeˣ) over a dimension; nn.LogSoftmax.
    LogSoftmax => |x, dim| x.f_log_softmax(dim, None)?;
}

/// The options of [`Prelu`].
#[derive(Debug, Clone, Copy)]
pub struct PreluConfig {
    /// The number of slopes: 1 for a common slope, or the number of channels.
    pub num_parameters: i64,
    /// The initial slope.
    pub init: f64,
}

impl PreluConfig {
    /// Returns options with a common slope for all channels, which starts at 0.25.
    #[expect(clippy::new_without_default, reason = "all layers' options begin with `new`")]
    pub fn new() -> Self {
        Self { num_parameters: 1, init: 0.25 }
    }
}

/// x where x is positive, and slope·x elsewhere, where the slope is a learned parameter; nn.PReLU.
#[derive(Debug)]
pub struct Prelu {
    weight: Tensor,
}

impl Prelu {
    /// Creates the layer with one slope, or one for each channel of `[N, C, …]`.
    ///
    /// # Errors
    /// When `num_parameters` is below 1.
    pub fn new(config: PreluConfig) -> Result<Self> {
        if config.num_parameters < 1 {
            return Err(Error::config(format!(
                "prelu: num_parameters is {}, but must be at least 1",
                config.num_parameters
            )));
        }
        Ok(Self { weight: init::constant(&[config.num_parameters], config.init)? })
    }
}

impl Visit for Prelu {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
    }
}

impl Module for Prelu {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_prelu(&self.weight)?)
    }
}

/// x where x is above `threshold`, and the constant `value` elsewhere; nn.Threshold.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    threshold: f64,
    value: f64,
}

impl Threshold {
    /// Creates the layer with this threshold, and with the constant `value`.
    ///
    /// # Errors
    /// At present this function returns no error. It returns a `Result` like the constructors of
    /// other layers.
    pub fn new(threshold: f64, value: f64) -> Result<Self> {
        Ok(Self { threshold, value })
    }
}

impl Visit for Threshold {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Threshold {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_threshold(self.threshold, self.value)?)
    }
}
