//! Layers that combine two tensors.

use tch::Tensor;

use super::{Context, Forward, Role, Visit, Visitor, init};
use crate::{Error, Result};

/// The options of a [`Bilinear`].
#[derive(Debug, Clone, Copy)]
pub struct BilinearConfig {
    /// The size of the first input's last dimension.
    pub in1_features: i64,
    /// The size of the second input's last dimension.
    pub in2_features: i64,
    /// The size of the output's last dimension.
    pub out_features: i64,
    /// Whether the layer adds a bias.
    pub bias: bool,
}

impl BilinearConfig {
    /// Returns options with a bias.
    pub fn new(in1_features: i64, in2_features: i64, out_features: i64) -> Self {
        Self { in1_features, in2_features, out_features, bias: true }
    }
}

/// y = x₁ᵀ·W·x₂ + b, for x₁ of shape `[…, in1_features]` and x₂ of shape `[…, in2_features]`;
/// nn.Bilinear.
#[derive(Debug)]
pub struct Bilinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Bilinear {
    /// Creates the layer. Draws the weight, and then the bias, from the uniform distribution
    /// between −1/√in1_features and 1/√in1_features.
    ///
    /// # Errors
    /// When a size is not positive.
    pub fn new(config: BilinearConfig) -> Result<Self> {
        let BilinearConfig { in1_features, in2_features, out_features, bias } = config;
        if [in1_features, in2_features, out_features].iter().any(|size| *size < 1) {
            return Err(Error::config(format!(
                "bilinear({in1_features}, {in2_features}, {out_features}): all sizes must be positive"
            )));
        }
        let bound = init::bias_bound(in1_features);
        let weight = init::uniform(&[out_features, in1_features, in2_features], bound)?;
        let bias = match bias {
            true => Some(init::uniform(&[out_features], bound)?),
            false => None,
        };
        Ok(Self { weight, bias })
    }
}

impl Visit for Bilinear {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
        if let Some(bias) = &self.bias {
            visitor.tensor("bias", bias, Role::Parameter);
        }
    }
}

impl Forward for Bilinear {
    type Input = (&'static Tensor, &'static Tensor);
    type Output = Tensor;

    fn forward_with(&self, (one, other): (&Tensor, &Tensor), _: &Context) -> Result<Tensor> {
        Ok(Tensor::f_bilinear(one, other, &self.weight, self.bias.as_ref())?)
    }
}

/// The options of a [`CosineSimilarity`]. The defaults are those of nn.CosineSimilarity.
#[derive(Debug, Clone, Copy)]
pub struct CosineSimilarityConfig {
    /// The dimension along which the cosine is computed.
    pub dim: i64,
    /// The lower limit of the norms in the divisor: if the norm of a vector is smaller, `eps` is
    /// used instead.
    pub eps: f64,
}

impl CosineSimilarityConfig {
    /// Returns options for vectors along dimension 1.
    #[expect(clippy::new_without_default, reason = "all layers' options begin with `new`")]
    pub fn new() -> Self {
        Self { dim: 1, eps: 1e-8 }
    }
}

/// Computes the cosine of the angle between each vector of one tensor and the vector at the same
/// position of the other; nn.CosineSimilarity. The loss of the same name is
/// [`loss::CosineSimilarity`](crate::loss::CosineSimilarity).
#[derive(Debug, Clone, Copy)]
pub struct CosineSimilarity {
    config: CosineSimilarityConfig,
}

impl CosineSimilarity {
    /// Creates the layer with these options.
    ///
    /// # Errors
    /// When `eps` is negative.
    pub fn new(config: CosineSimilarityConfig) -> Result<Self> {
        at_least_zero("cosine_similarity", config.eps)?;
        Ok(Self { config })
    }
}

impl Visit for CosineSimilarity {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Forward for CosineSimilarity {
    type Input = (&'static Tensor, &'static Tensor);
    type Output = Tensor;

    fn forward_with(&self, (one, other): (&Tensor, &Tensor), _: &Context) -> Result<Tensor> {
        let CosineSimilarityConfig { dim, eps } = self.config;
        Ok(Tensor::f_cosine_similarity(one, other, dim, eps)?)
    }
}

/// The options of a [`PairwiseDistance`]. The defaults are those of nn.PairwiseDistance.
#[derive(Debug, Clone, Copy)]
pub struct PairwiseDistanceConfig {
    /// The exponent p of the norm.
    pub p: f64,
    /// The number that is added to each difference.
    pub eps: f64,
    /// Whether the output keeps the last dimension, with size 1.
    pub keepdim: bool,
}

impl PairwiseDistanceConfig {
    /// Returns options for the Euclidean distance.
    #[expect(clippy::new_without_default, reason = "all layers' options begin with `new`")]
    pub fn new() -> Self {
        Self { p: 2.0, eps: 1e-6, keepdim: false }
    }
}

/// Computes the distance ‖x₁ − x₂ + ε‖ₚ between the vectors x₁ and x₂ along the last dimension of
/// two tensors; nn.PairwiseDistance.
#[derive(Debug, Clone, Copy)]
pub struct PairwiseDistance {
    config: PairwiseDistanceConfig,
}

impl PairwiseDistance {
    /// Creates the layer with these options.
    ///
    /// # Errors
    /// When `eps` is negative.
    pub fn new(config: PairwiseDistanceConfig) -> Result<Self> {
        at_least_zero("pairwise_distance", config.eps)?;
        Ok(Self { config })
    }
}

impl Visit for PairwiseDistance {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Forward for PairwiseDistance {
    type Input = (&'static Tensor, &'static Tensor);
    type Output = Tensor;

    fn forward_with(&self, (one, other): (&Tensor, &Tensor), _: &Context) -> Result<Tensor> {
        let PairwiseDistanceConfig { p, eps, keepdim } = self.config;
        Ok(Tensor::f_pairwise_distance(one, other, p, eps, keepdim)?)
    }
}

fn at_least_zero(layer: &str, eps: f64) -> Result<()> {
    match eps >= 0.0 {
        true => Ok(()),
        false => Err(Error::config(format!("{layer}: eps is {eps}, but must be at least 0"))),
    }
}
