//! The matrix products that compute queries, keys and values from the inputs of attention.

use tch::Tensor;

use super::MultiheadAttention;
use crate::{
    Result, ffi,
    nn::{Casts, Context},
};

/// The weights for queries, keys and values.
#[derive(Debug)]
pub(super) enum Projection {
    /// `in_proj_weight`, `[3·embed_dim, embed_dim]`.
    Packed(Tensor),
    /// `q_proj_weight`, `k_proj_weight` and `v_proj_weight`, if `kdim` or `vdim` differs from
    /// `embed_dim`, or `num_kv_heads` from `num_heads`.
    Apart([Tensor; 3]),
}

/// The projected queries, keys and values.
pub(super) enum Projected {
    /// Queries, keys and values in one tensor, `[N, L, 3·embed_dim]`.
    Together(Tensor),
    /// Queries, keys and values in separate tensors.
    Apart([Tensor; 3]),
}

impl MultiheadAttention {
    pub(super) fn project(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        cx: &Context,
    ) -> Result<Projected> {
        let (d, kv) = (self.config.embed_dim, self.config.kv_width());
        let of_use = |tensor| cx.weight(tensor, Casts::Once);
        let bias = self.in_proj_bias.as_ref().map(of_use).transpose()?;
        let bias = bias.as_deref();
        let is_one = |a: &Tensor, b: &Tensor| ffi::identity(a) == ffi::identity(b);
        match &self.projection {
            Projection::Packed(weight) if is_one(query, key) && is_one(key, value) => {
                Ok(Projected::Together(ffi::linear(query, &*of_use(weight)?, bias)?))
            }
            Projection::Packed(weight) => {
                let weight = &*of_use(weight)?;
                Ok(Projected::Apart([
                    ffi::linear_part(query, weight, bias, 0..d)?,
                    ffi::linear_part(key, weight, bias, d..2 * d)?,
                    ffi::linear_part(value, weight, bias, 2 * d..3 * d)?,
                ]))
            }
            Projection::Apart([q, k, v]) => {
                let part = |first: i64, count: i64| {
                    bias.map(|bias| bias.f_narrow(0, first, count)).transpose()
                };
                Ok(Projected::Apart([
                    ffi::linear(query, &*of_use(q)?, part(0, d)?.as_ref())?,
                    ffi::linear(key, &*of_use(k)?, part(d, kv)?.as_ref())?,
                    ffi::linear(value, &*of_use(v)?, part(d + kv, kv)?.as_ref())?,
                ]))
            }
        }
    }
}
