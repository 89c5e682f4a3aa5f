use tch::Tensor;

use super::{Context, Linear, LinearConfig, Module, Op, Role, Visit, Visitor, init, visit_child};
use crate::{Error, Result, ffi};

/// The options of a [`MultiheadAttention`].
#[derive(Debug, Clone, Copy)]
pub struct MultiheadAttentionConfig {
    /// Model width.
    pub embed_dim: i64,
    /// Heads; must divide `embed_dim`.
    pub num_heads: i64,
    /// Dropout on the attention weights while training.
    pub dropout: f64,
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
}

impl MultiheadAttentionConfig {
    /// No dropout, not causal.
    pub fn new(embed_dim: i64, num_heads: i64) -> Self {
        Self { embed_dim, num_heads, dropout: 0.0, causal: false }
    }
}

/// Self-attention of `[N, L, embed_dim]` through scaled_dot_product_attention;
/// nn.MultiheadAttention with batch_first and equal query, key and value.
#[derive(Debug)]
pub struct MultiheadAttention {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    config: MultiheadAttentionConfig,
}

impl MultiheadAttention {
    /// Draws out_proj, then in_proj (Xavier uniform), in PyTorch's order; biases are zero.
    ///
    /// # Errors
    /// When `num_heads` does not divide `embed_dim`.
    pub fn new(config: MultiheadAttentionConfig) -> Result<Self> {
        let MultiheadAttentionConfig { embed_dim: d, num_heads, .. } = config;
        if num_heads < 1 || d % num_heads != 0 {
            return Err(Error::config(format!(
                "multihead_attention({d}, {num_heads}): the heads must divide the width"
            )));
        }
        let out_proj = Linear::new(LinearConfig::new(d, d))?.with_zero_bias()?;
        // Xavier uniform: √(6 / (fan_in + fan_out)).
        let bound = (6.0 / (d + 3 * d) as f64).sqrt();
        Ok(Self {
            in_proj_weight: init::uniform(&[3 * d, d], bound)?,
            in_proj_bias: init::constant(&[3 * d], 0.0)?,
            out_proj,
            config,
        })
    }
}

impl MultiheadAttention {
    /// The values alone. Where there is one position, the softmax over it is 1 whatever query and
    /// key are: they change nothing, and their gradients are zero. libtorch's fused kernels take
    /// longer for that than the rest of the layer, and give them gradients of rounding errors.
    fn project_values(&self, input: &Tensor) -> Result<Tensor> {
        let d = self.config.embed_dim;
        ffi::linear_part(input, &self.in_proj_weight, Some(&self.in_proj_bias), 2 * d..3 * d)
    }

    /// What one position attends to: its values, of which dropout of the weight, which is 1, drops
    /// heads as a whole.
    fn attend_to_itself(&self, input: &Tensor, dropout: f64) -> Result<Tensor> {
        let MultiheadAttentionConfig { embed_dim, num_heads, .. } = self.config;
        let values = self.project_values(input)?;
        if dropout == 0.0 {
            return Ok(values);
        }
        let width = embed_dim / num_heads;
        if values.device().is_cuda() && dropout < 1.0 {
            return ffi::dropout(&values, dropout, width);
        }
        let n = values.size()[0];
        let weights = Tensor::f_ones([n, num_heads, 1, 1], (values.kind(), values.device()))?;
        let kept = weights.f_dropout(dropout, true)?;
        let heads = values.f_reshape([n, num_heads, 1, width])?;
        Ok(heads.f_mul(&kept)?.f_reshape([n, 1, embed_dim])?)
    }
}

impl Visit for MultiheadAttention {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("in_proj_weight", &self.in_proj_weight, Role::Parameter);
        visitor.tensor("in_proj_bias", &self.in_proj_bias, Role::Parameter);
        visit_child(visitor, "out_proj", None, &self.out_proj);
    }
}

impl Module for MultiheadAttention {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let MultiheadAttentionConfig { embed_dim, num_heads, dropout, causal } = self.config;
        let (n, length) = (input.size()[0], input.size()[1]);
        let heads = |x: &Tensor| -> Result<Tensor> {
            let shape = [n, length, num_heads, embed_dim / num_heads];
            Ok(x.f_reshape(shape)?.f_transpose(1, 2)?)
        };
        let dropout = if cx.drops_out() { dropout } else { 0.0 };
        let joined = if length == 1 {
            self.attend_to_itself(input, dropout)?
        } else {
            let projected = ffi::linear(input, &self.in_proj_weight, Some(&self.in_proj_bias))?;
            let qkv = projected.f_chunk(3, -1)?;
            let attended = Tensor::f_scaled_dot_product_attention(
                &heads(&qkv[0])?,
                &heads(&qkv[1])?,
                &heads(&qkv[2])?,
                None::<Tensor>,
                dropout,
                causal,
                None,
                false,
            )?;
            attended.f_transpose(1, 2)?.f_reshape([n, length, embed_dim])?
        };
        cx.call("out_proj", None, &self.out_proj, &joined)
    }

    fn op(&self) -> Op {
        Op::Matmul
    }
}
