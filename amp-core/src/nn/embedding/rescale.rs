//! Vectors of limited length.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The greatest p-norm of a vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaxNorm {
    most: f64,
    p: f64,
}

impl MaxNorm {
    /// The limit, if there is one.
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

    /// Rescales the rows of `table` at these indices in place, where they are longer. Their gradients are those of
    /// the rescaled rows, as in torch.
    pub(super) fn rescale(self, table: &Tensor, indices: &Tensor) -> Result<()> {
        if indices.numel() == 0 {
            return Ok(());
        }
        tch::no_grad(|| -> Result<()> {
            let indices = indices.f_contiguous()?;
            let _ = table.f_detach()?.f_embedding_renorm_(&indices, self.most, self.p)?;
            Ok(())
        })
    }

    /// The same for all rows of `rows`, `[N, embedding_dim]`.
    pub(super) fn rescale_all(self, rows: &Tensor) -> Result<()> {
        let all = Tensor::f_arange(rows.size()[0], (Kind::Int64, rows.device()))?;
        self.rescale(rows, &all)
    }
}
