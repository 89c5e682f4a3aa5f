//! Attention of sequences of one token to themselves.

use tch::Tensor;

use super::{MultiheadAttention, MultiheadAttentionConfig};
use crate::{Result, ffi, nn::Context};

impl MultiheadAttention {
    /// Computes only the values, for sequences of one token. The attention weight is always 1, so
    /// the gradients of query and key are zero. libtorch's fused kernels would be slower, and would
    /// return rounding errors in place of zeros.
    fn project_values(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let d = self.config.embed_dim;
        ffi::linear_part(input, weight, self.in_proj_bias.as_ref(), 2 * d..3 * d)
    }

    /// Computes the attention of sequences of one token. The only attention weight is 1, so the
    /// output equals the values. Dropout of this weight sets all values of a head to zero.
    pub(super) fn attend_to_itself(
        &self,
        input: &Tensor,
        weight: &Tensor,
        dropout: f64,
        cx: &Context,
    ) -> Result<Tensor> {
        let MultiheadAttentionConfig { embed_dim, num_heads, .. } = self.config;
        let values = self.project_values(input, weight)?;
        let values = match cx.has_substitutes() {
            true => cx.within("values", &values)?,
            false => values,
        };
        if dropout == 0.0 {
            return Ok(values);
        }
        let width = embed_dim / num_heads;
        if values.device().is_cuda() && dropout < 1.0 && ffi::own_kernels() {
            return ffi::dropout(&values, dropout, width);
        }
        let n = values.size()[0];
        let weights = Tensor::f_ones([n, num_heads, 1, 1], (values.kind(), values.device()))?;
        let kept = weights.f_dropout(dropout, true)?;
        let heads = values.f_reshape([n, num_heads, 1, width])?;
        Ok(heads.f_mul(&kept)?.f_reshape([n, 1, embed_dim])?)
    }
}
