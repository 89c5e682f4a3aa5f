//! Retrieval metrics.

use tch::{Kind, Tensor};

use super::{Metric, MetricState, Mode, Reduction};
use crate::{
    Result,
    loss::{elementwise, misfit},
    precision::{AutocastGuard, f32_or_f64},
};

/// The number of queries whose similarities to all keys are computed at a time, to limit memory.
const ROWS: i64 = 1024;

/// Recall at k: the fraction of queries whose own key (key i for query i) is among the `k` keys
/// with the largest cosine similarity to the query. The output contains the queries and the target
/// contains the keys, both of shape `[N, D]`. If the model computes queries and keys, its output
/// has the shape `[N, 2, D]`, and the target is not used.
///
/// Each query is compared with the keys of all batches, so the value does not depend on the batch
/// size. A key with the same similarity as the query's own key counts as more similar. A model
/// whose outputs are all equal therefore has a recall of 0, if there are more than `k` keys. A NaN
/// in a query or a key makes the metric NaN.
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// #[derive(LightningModule)]
/// #[loss(info_nce)]
/// #[metric(recall_at_k, k = 5, stage = val)]
/// #[optimizer(adamw, lr = 1e-3)]
/// struct Tower {
///     #[layer(linear(64, 16))]
///     body: Linear,
/// }
/// # fn main() {}
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RecallAtK {
    /// The number k of most similar keys among which the query's own key must be; at least 1.
    pub k: i64,
}

impl Metric for RecallAtK {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        const NAME: &str = "recall_at_k";
        if self.k < 1 {
            let why = format!("k is {}, but must be at least 1", self.k);
            return Err(misfit(NAME, output, target, &why));
        }
        let (queries, keys) = match output.size().as_slice() {
            [_, 2, _] => (output.f_select(1, 0)?, output.f_select(1, 1)?),
            _ => elementwise(NAME, output, target)?,
        };
        if queries.dim() != 2 {
            let why = "the output (queries) and the target (keys) must both be [N, D], or the \
                       output must hold queries and keys as [N, 2, D]";
            return Err(misfit(NAME, output, target, why));
        }
        Ok(MetricState::concat(&queries).and_concat(&keys))
    }

    fn reduction(&self) -> Reduction {
        let k = self.k;
        Reduction::of(move |state| {
            let [queries, keys] = state else { return Err(super::other_state(2, state)) };
            let _off = AutocastGuard::off(queries.device())?;
            let unit = |rows: &Tensor| -> Result<Tensor> {
                let kind = f32_or_f64(rows.kind());
                let rows = rows.f_to_kind(kind)?;
                let norm = rows.f_norm_scalaropt_dim(2.0, [1].as_slice(), true)?;
                Ok(rows.f_div(&norm.f_clamp_min(1e-12)?)?)
            };
            let (queries, keys) = (unit(queries)?, unit(keys)?);
            let count = queries.size()[0];
            let mut found = Tensor::f_zeros([] as [i64; 0], (Kind::Double, queries.device()))?;
            for start in (0..count).step_by(ROWS as usize) {
                let rows = ROWS.min(count - start);
                let scores = queries.f_narrow(0, start, rows)?.f_matmul(&keys.f_tr()?)?;
                let own = scores.f_diagonal(start, 0, 1)?.f_unsqueeze(1)?;
                // The rank of the query's own key is the number of scores that are not below the
                // score of this key, including this score itself.
                let before = scores.f_ge_tensor(&own)?;
                let rank = before.f_sum_dim_intlist([1].as_slice(), false, Kind::Double)?;
                found = found.f_add(&rank.f_le(k as f64)?.f_sum(Kind::Double)?)?;
            }
            for rows in [&queries, &keys] {
                found = found.f_masked_fill(&rows.f_isnan()?.f_any()?, f64::NAN)?;
            }
            Ok(Tensor::from(found.f_double_value(&[])? / count as f64))
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}
