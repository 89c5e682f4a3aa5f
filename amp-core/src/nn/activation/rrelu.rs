//! A leaky ReLU with random slopes.

use tch::Tensor;

use crate::{
    Error, Result,
    nn::{Context, Module, Visit, Visitor},
};

/// The options of [`Rrelu`].
#[derive(Debug, Clone, Copy)]
pub struct RreluConfig {
    /// The least slope.
    pub lower: f64,
    /// The largest slope.
    pub upper: f64,
}

impl RreluConfig {
    /// Returns the defaults of torch.nn.
    #[expect(clippy::new_without_default, reason = "all layers' options begin with `new`")]
    pub fn new() -> Self {
        Self { lower: 1.0 / 8.0, upper: 1.0 / 3.0 }
    }
}

/// x where x is positive, and slope·x elsewhere; nn.RReLU. In training, each slope is drawn from
/// U(lower, upper). In evaluation, all slopes are (lower + upper)/2. With the same seed, the slopes
/// differ from PyTorch's.
#[derive(Debug, Clone, Copy)]
pub struct Rrelu {
    config: RreluConfig,
}

impl Rrelu {
    /// Creates the layer with these options.
    ///
    /// # Errors
    /// When `lower` is above `upper`, or one of the two is not finite.
    pub fn new(config: RreluConfig) -> Result<Self> {
        let RreluConfig { lower, upper } = config;
        match lower <= upper && (upper - lower).is_finite() {
            true => Ok(Self { config }),
            false => Err(Error::config(format!(
                "rrelu: lower is {lower} and upper {upper}, but both must be finite, and lower must \
                 be at most upper"
            ))),
        }
    }
}

impl Visit for Rrelu {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Rrelu {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let RreluConfig { lower, upper } = self.config;
        let negative = match cx.drops_out() {
            true => input.f_mul(&input.f_detach()?.f_empty_like()?.f_uniform_(lower, upper)?)?,
            false => input.f_mul_scalar((lower + upper) / 2.0)?,
        };
        Ok(input.f_where_self(&input.f_gt(0.0)?, &negative)?)
    }
}
