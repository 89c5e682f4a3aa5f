use tch::{Device, Kind, Tensor};

use super::remembered;
use crate::{Error, Result, nn::Role, random};

/// An initializer: the distribution of a tensor's initial values. The values are computed in f32 on
/// the CPU by libtorch's generator. The same seed gives the same values for any dtype and device,
/// up to rounding. For an f32 tensor on the CPU, the values equal those of torch.nn.init. Use an
/// initializer for a field, `#[parameter(shape = [64, 10], init = normal(0.0, 0.02))]`, or for a
/// layer, `linear(64, 10, weight_init = normal(0.0, 0.02))`.
///
/// As in torch, the weights `[outputs, inputs, …]` have fan_in = inputs · (product of the other
/// sizes) and fan_out = outputs · (product of the other sizes).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All elements are 0.
    Zeros,
    /// All elements are 1.
    Ones,
    /// All elements have the value `value`.
    Full {
        /// The value.
        value: f64,
    },
    /// U(low, high).
    Uniform {
        /// The smallest value.
        low: f64,
        /// The upper bound. Values are below it.
        high: f64,
    },
    /// N(mean, std²).
    Normal {
        /// The mean.
        mean: f64,
        /// The standard deviation.
        std: f64,
    },
    /// The normal distribution N(mean, std²), restricted to [a, b].
    TruncNormal {
        /// The mean.
        mean: f64,
        /// The standard deviation.
        std: f64,
        /// The smallest value.
        a: f64,
        /// The largest value.
        b: f64,
    },
    /// U(±gain·√(6 / (fan_in + fan_out))) (Glorot and Bengio 2010).
    XavierUniform {
        /// The factor by which the values are multiplied; see [`calculate_gain`].
        gain: f64,
    },
    /// The normal distribution N(0, gain²·2 / (fan_in + fan_out)).
    XavierNormal {
        /// The factor by which the values are multiplied; see [`calculate_gain`].
        gain: f64,
    },
    /// U(±gain·√(3 / fan)) (He et al., arXiv:1502.01852).
    KaimingUniform {
        /// The negative slope of the leaky ReLU that follows the layer. √5 gives the initial values
        /// that torch uses by default for nn.Linear and convolutions, U(±1/√fan_in).
        a: f64,
        /// Whether fan is fan_in or fan_out.
        mode: FanMode,
        /// The activation that follows the layer. It determines the gain.
        nonlinearity: Nonlinearity,
    },
    /// The normal distribution N(0, gain² / fan).
    KaimingNormal {
        /// The negative slope of the leaky ReLU that follows the layer.
        a: f64,
        /// Whether fan is fan_in or fan_out.
        mode: FanMode,
        /// The activation that follows the layer. It determines the gain.
        nonlinearity: Nonlinearity,
    },
    /// A random (semi-)orthogonal matrix (Saxe et al., arXiv:1312.6120). The size of the first
    /// dimension is the number of rows. The product of the sizes of all other dimensions is the
    /// number of columns.
    Orthogonal {
        /// The factor by which the values are multiplied.
        gain: f64,
    },
    /// The identity matrix.
    Eye,
}

/// Whether the standard deviation of the values is computed from fan_in or from fan_out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FanMode {
    /// fan_in, the number of inputs of each output. With it, activations keep their variance in the
    /// forward pass.
    #[default]
    FanIn,
    /// fan_out, the number of outputs of each input. With it, gradients keep their variance in the
    /// backward pass.
    FanOut,
}

/// The activation that follows a layer. It determines the gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nonlinearity {
    /// No activation (torch's `linear` and `conv1d` to `conv3d`).
    Linear,
    /// The sigmoid.
    Sigmoid,
    /// tanh.
    Tanh,
    /// ReLU.
    Relu,
    /// Leaky ReLU.
    #[default]
    LeakyRelu,
    /// SELU.
    Selu,
}

/// Returns the gain that torch recommends: 5/3 for tanh, √2 for ReLU, √(2 / (1 + a²)) for leaky
/// ReLU of negative slope `a`, 3/4 for SELU, and 1 in all other cases.
pub fn calculate_gain(nonlinearity: Nonlinearity, a: f64) -> f64 {
    match nonlinearity {
        Nonlinearity::Linear | Nonlinearity::Sigmoid => 1.0,
        Nonlinearity::Tanh => 5.0 / 3.0,
        Nonlinearity::Relu => 2.0_f64.sqrt(),
        Nonlinearity::LeakyRelu => (2.0 / (1.0 + a.powi(2))).sqrt(),
        Nonlinearity::Selu => 3.0 / 4.0,
    }
}

impl Init {
    /// Returns a new tensor of this shape with initial values. If `role` is a parameter, the tensor
    /// requires a gradient.
    ///
    /// # Errors
    /// When a size is negative, the bounds or the standard deviation are invalid, or the shape has
    /// too few dimensions: Xavier, Kaiming and orthogonal initial values need at least two, and
    /// `Eye` needs exactly two.
    pub fn tensor(self, shape: &[i64], role: Role) -> Result<Tensor> {
        let tensor = self.draw(shape)?;
        Ok(tensor.f_set_requires_grad(role == Role::Parameter)?)
    }

    /// Fills a tensor with new values, in place and without autograd history.
    ///
    /// # Errors
    /// When [`tensor`](Self::tensor) would fail for this shape.
    pub fn fill(self, tensor: &Tensor) -> Result<()> {
        let values = self.draw(&tensor.size())?;
        // A copy inside `no_grad` has no autograd history.
        tch::no_grad(|| tensor.shallow_clone().f_copy_(&values))?;
        Ok(())
    }

    fn draw(self, shape: &[i64]) -> Result<Tensor> {
        match self {
            Self::Zeros => filled(shape, 0.0),
            Self::Ones => filled(shape, 1.0),
            Self::Full { value } => filled(shape, value),
            Self::Uniform { low, high } => drawn(shape, Draw::Uniform(low, high)),
            Self::Normal { mean, std } => drawn(shape, Draw::Normal(mean, std)),
            Self::TruncNormal { mean, std, a, b } => truncated(shape, [mean, std], [a, b]),
            Self::XavierUniform { gain } => {
                let std = xavier("xavier_uniform", gain, shape)?;
                symmetric(shape, 3.0_f64.sqrt() * std)
            }
            Self::XavierNormal { gain } => {
                let std = xavier("xavier_normal", gain, shape)?;
                drawn(shape, Draw::Normal(0.0, std))
            }
            Self::KaimingUniform { a, mode, nonlinearity } => {
                let std = kaiming("kaiming_uniform", calculate_gain(nonlinearity, a), mode, shape)?;
                symmetric(shape, 3.0_f64.sqrt() * std)
            }
            Self::KaimingNormal { a, mode, nonlinearity } => {
                let std = kaiming("kaiming_normal", calculate_gain(nonlinearity, a), mode, shape)?;
                drawn(shape, Draw::Normal(0.0, std))
            }
            Self::Orthogonal { gain } => orthogonal(shape, gain),
            Self::Eye => match shape {
                [rows, columns] => {
                    Ok(Tensor::f_eye_m(*rows, *columns, (Kind::Float, Device::Cpu))?)
                }
                _ => Err(Error::config(format!(
                    "eye: the shape is {shape:?}, but must have two dimensions"
                ))),
            },
        }
    }
}

/// Returns random values, uniform in `[-bound, bound]`.
pub(super) fn symmetric(shape: &[i64], bound: f64) -> Result<Tensor> {
    drawn(shape, Draw::Uniform(-bound, bound))
}

/// A distribution of random numbers from libtorch's generator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Draw {
    /// The uniform distribution from the first to the second value.
    Uniform(f64, f64),
    /// The normal distribution with this mean and this standard deviation.
    Normal(f64, f64),
    /// A normal distribution that is restricted to the range `ends`. `moments` are the mean and the
    /// standard deviation of the unrestricted distribution. The values are computed by the inverse
    /// error function from uniform random numbers in the range `uniform`.
    Truncated { uniform: [f64; 2], moments: [f64; 2], ends: [f64; 2] },
}

impl Draw {
    fn fill(self, tensor: &mut Tensor) -> Result<()> {
        let _ = match self {
            Self::Uniform(low, high) => tensor.f_uniform_(low, high)?,
            Self::Normal(mean, std) => tensor.f_normal_(mean, std)?,
            Self::Truncated { uniform: [low, high], moments: [mean, std], ends: [a, b] } => {
                let _ = tensor.f_uniform_(low, high)?.f_erfinv_()?;
                let _ = tensor.f_mul_scalar_(std * 2.0_f64.sqrt())?.f_add_scalar_(mean)?;
                tensor.f_clamp_(a, b)?
            }
        };
        Ok(())
    }
}

fn drawn(shape: &[i64], draw: Draw) -> Result<Tensor> {
    let _place = random::place();
    remembered::values(draw, shape, || {
        let mut tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        draw.fill(&mut tensor)?;
        Ok(tensor)
    })
}

/// Returns a tensor in which every element has the same value.
pub(super) fn filled(shape: &[i64], value: f64) -> Result<Tensor> {
    Ok(Tensor::f_full(shape, value, (Kind::Float, Device::Cpu))?)
}

/// Returns fan_in and fan_out of a weight of this shape.
fn fans(init: &str, shape: &[i64]) -> Result<[i64; 2]> {
    match shape {
        [outputs, inputs, rest @ ..] if shape.iter().all(|size| *size > 0) => {
            let rest: i64 = rest.iter().product();
            Ok([inputs * rest, outputs * rest])
        }
        _ => Err(Error::config(format!(
            "{init}: fan_in and fan_out cannot be computed for the shape {shape:?}: the shape must \
             be [outputs, inputs, …], without a size of 0"
        ))),
    }
}

/// Returns the standard deviation of Xavier's initial values. The operations have torch's order, so
/// the result is bit-identical to torch's.
fn xavier(init: &str, gain: f64, shape: &[i64]) -> Result<f64> {
    let [fan_in, fan_out] = fans(init, shape)?;
    Ok(gain * (2.0 / (fan_in + fan_out) as f64).sqrt())
}

/// Returns the standard deviation of Kaiming's initial values. The operations have torch's order,
/// so the result is bit-identical to torch's.
fn kaiming(init: &str, gain: f64, mode: FanMode, shape: &[i64]) -> Result<f64> {
    let [fan_in, fan_out] = fans(init, shape)?;
    let fan = match mode {
        FanMode::FanIn => fan_in,
        FanMode::FanOut => fan_out,
    };
    Ok(gain / (fan as f64).sqrt())
}

/// Returns random values from a truncated normal distribution. As in torch, computes them from
/// uniform random numbers by the inverse error function.
fn truncated(shape: &[i64], [mean, std]: [f64; 2], [a, b]: [f64; 2]) -> Result<Tensor> {
    let refused = |why| Err(Error::config(format!("trunc_normal({mean}, {std}, {a}, {b}): {why}")));
    if std.is_nan() || std <= 0.0 || a.is_nan() || b.is_nan() || a >= b {
        return refused("std must be above 0, and a below b");
    }
    if mean < a - 2.0 * std || mean > b + 2.0 * std {
        return refused(
            "the mean is more than 2 standard deviations outside [a, b], so the values cannot be \
             drawn accurately: choose a mean closer to [a, b]",
        );
    }
    let below = |x: f64| -> Result<f64> {
        let erf = Tensor::from((x - mean) / std / 2.0_f64.sqrt()).f_erf()?;
        Ok((1.0 + erf.f_double_value(&[])?) / 2.0)
    };
    let (low, high) = (2.0 * below(a)? - 1.0, 2.0 * below(b)? - 1.0);
    drawn(shape, Draw::Truncated { uniform: [low, high], moments: [mean, std], ends: [a, b] })
}

/// Returns the matrix Q of the QR decomposition of a matrix of normal random numbers, multiplied by
/// `gain`. The signs are chosen such that Q is uniformly distributed over the orthogonal matrices.
fn orthogonal(shape: &[i64], gain: f64) -> Result<Tensor> {
    let [rows, rest @ ..] = shape else { return no_matrix(shape) };
    if rest.is_empty() || shape.iter().any(|size| *size < 1) {
        return no_matrix(shape);
    }
    let columns: i64 = rest.iter().product();
    let mut matrix = drawn(&[*rows, columns], Draw::Normal(0.0, 1.0))?;
    let is_wide = *rows < columns;
    if is_wide {
        matrix = matrix.f_transpose(0, 1)?;
    }
    let (q, r) = Tensor::f_linalg_qr(&matrix, "reduced")?;
    let mut q = q.f_mul(&r.f_diagonal(0, 0, 1)?.f_sign()?)?;
    if is_wide {
        q = q.f_transpose(0, 1)?;
    }
    Ok(q.f_reshape(shape)?.f_mul_scalar(gain)?)
}

fn no_matrix(shape: &[i64]) -> Result<Tensor> {
    Err(Error::config(format!(
        "orthogonal: the shape is {shape:?}, but must have at least two dimensions, without a size \
         of 0"
    )))
}
