//! Limits the norm of embedding vectors (`max_norm`).

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The largest p-norm that a vector may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaxNorm {
    most: f64,
    p: f64,
}

impl MaxNorm {
    /// Checks the options `max_norm` and `norm_type`. Returns `None` if `max_norm` is not set.
    pub(super) fn new(layer: &str, max_norm: Option<f64>, norm_type: f64) -> Result<Option<Self>> {
        let Some(most) = max_norm else { return Ok(None) };
        for (name, value) in [("max_norm", most), ("norm_type", norm_type)] {
            if value.is_nan() || value <= 0.0 {
                return Err(Error::config(format!(
                    "{layer}: {name} is {value}, but must be above 0"
                )));
            }
        }
        Ok(Some(Self { most, p: norm_type }))
    }

    /// Rescales in place the rows of `table` at `indices` whose norm is too large. Call it before
    /// the lookup: as in torch, gradients are those of the rescaled rows.
    pub(super) fn rescale(self, table: &Tensor, indices: &Tensor) -> Result<()> {
        if indices.numel() == 0 {
            return Ok(());
        }
        tch::no_grad(|| -> Result<()> {
            let mut table = table.f_detach()?;
            let _ = if self.p.is_infinite() {
                table.f_mul_(&self.factors(&table, indices)?)?
            } else {
                table.f_embedding_renorm_(&indices.f_contiguous()?, self.most, self.p)?
            };
            Ok(())
        })
    }

    /// Computes the factor by which each row of `table` is rescaled, `[num_embeddings, 1]`, by the
    /// formula that libtorch uses on the CPU. For p = ∞, libtorch's `embedding_renorm_` on CUDA is
    /// wrong: it computes (Σ|x|^p)^(1/p), which is 0⁰ = 1 if all |x| are below 1.
    fn factors(self, table: &Tensor, indices: &Tensor) -> Result<Tensor> {
        let lengths = table.f_norm_scalaropt_dim(self.p, [1_i64], true)?;
        let shorter = lengths.f_add_scalar(1e-7)?.f_reciprocal()?.f_mul_scalar(self.most)?;
        let looked_up = lengths.f_zeros_like()?.f_index_fill(0, &indices.f_reshape([-1])?, 1.0)?;
        let is_longer = lengths.f_gt(self.most)?.f_logical_and(&looked_up)?;
        Ok(shorter.f_where_self(&is_longer, &lengths.f_ones_like()?)?)
    }

    /// Rescales in place all rows of `rows`, `[N, embedding_dim]`, whose norm is too large.
    pub(super) fn rescale_all(self, rows: &Tensor) -> Result<()> {
        let all = Tensor::f_arange(rows.size()[0], (Kind::Int64, rows.device()))?;
        self.rescale(rows, &all)
    }
}
