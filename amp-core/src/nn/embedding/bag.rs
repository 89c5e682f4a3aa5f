use tch::{Kind, Tensor};

use super::{MaxNorm, are_positive, changes_table, padding_index, table, visit_table};
use crate::{
    Error, Result,
    nn::{Context, Forward, Visit, Visitor},
    precision::dtype_name,
};

/// The options of an [`EmbeddingBag`]. The defaults are those of nn.EmbeddingBag.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingBagConfig {
    /// The number of vectors in the table.
    pub num_embeddings: i64,
    /// The number of elements of each vector.
    pub embedding_dim: i64,
    /// See [`EmbeddingConfig::max_norm`](super::EmbeddingConfig::max_norm).
    pub max_norm: Option<f64>,
    /// The exponent p of the norm that `max_norm` limits.
    pub norm_type: f64,
    /// Whether the gradient of a vector is divided by the number of times that the batch uses the
    /// vector. Not supported by [`BagMode::Max`].
    pub scale_grad_by_freq: bool,
    /// How the vectors of a bag are combined.
    pub mode: BagMode,
    /// The index that stands for padding. Bags ignore this index. The vector at this index starts
    /// as zeros and gets no gradient. A negative index counts from the end of the table.
    pub padding_idx: Option<i64>,
    /// Whether the last offset is the end of the last bag, and not the start of one more bag.
    pub include_last_offset: bool,
    /// See [`EmbeddingConfig::std`](super::EmbeddingConfig::std).
    pub std: f64,
}

/// How an [`EmbeddingBag`] combines the vectors of a bag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BagMode {
    /// The sum of the vectors. If there are weights, each vector is multiplied by its weight.
    Sum,
    /// The mean of the vectors.
    #[default]
    Mean,
    /// The elementwise maximum of the vectors.
    Max,
}

impl EmbeddingBagConfig {
    /// Returns options for the mean of the vectors of each bag, and for a table with initial values
    /// from N(0, 1).
    pub fn new(num_embeddings: i64, embedding_dim: i64) -> Self {
        Self {
            num_embeddings,
            embedding_dim,
            max_norm: None,
            norm_type: 2.0,
            scale_grad_by_freq: false,
            mode: BagMode::Mean,
            padding_idx: None,
            include_last_offset: false,
            std: 1.0,
        }
    }
}

/// Looks up the vectors of each bag of indices, and returns their sum, mean or maximum;
/// nn.EmbeddingBag. An empty bag gives zeros. There is no option `sparse`: gradients are dense.
///
/// With `scale_grad_by_freq` the vectors are looked up one by one before they are combined. The
/// reason is a bug of libtorch 2.11: on the CPU its operator divides the gradient of a vector by
/// the count of another index.
///
/// | tensor | shape |
/// | --- | --- |
/// | indices | `[N, L]` for N bags of L indices, or `[total]`: all bags, concatenated |
/// | offsets, for indices `[total]` | `[N]`: the position of the first index of each bag |
/// | weights, for sums | the shape of the indices |
/// | output | `[N, embedding_dim]` |
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::EmbeddingBag, prelude::*};
///
/// /// Classifies texts, given as concatenated word indices and the start of each text.
/// #[derive(Module)]
/// #[forward(|words, offsets: &Tensor| head(&bags(words, Some(offsets), None)?))]
/// struct Topic {
///     #[layer(embedding_bag(10_000, 64, mode = sum))]
///     bags: EmbeddingBag,
///     #[layer(linear(64, 4))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct EmbeddingBag {
    weight: Tensor,
    padding_idx: Option<i64>,
    max_norm: Option<MaxNorm>,
    config: EmbeddingBagConfig,
}

impl EmbeddingBag {
    /// Creates the layer. Draws the table of vectors from N(0, std²). The padding vector is zero.
    ///
    /// # Errors
    /// When a size is below 1, `padding_idx` is not an index of the table, `max_norm` or
    /// `norm_type` is not above 0, or `scale_grad_by_freq` is set together with [`BagMode::Max`].
    pub fn new(config: EmbeddingBagConfig) -> Result<Self> {
        let EmbeddingBagConfig { num_embeddings, embedding_dim, std, .. } = config;
        if config.scale_grad_by_freq && config.mode == BagMode::Max {
            return Err(refused(
                "scale_grad_by_freq needs the mode Sum or Mean, but the mode is Max".to_owned(),
            ));
        }
        are_positive("embedding_bag", "num_embeddings", &[num_embeddings])?;
        are_positive("embedding_bag", "embedding_dim", &[embedding_dim])?;
        let padding_idx = padding_index(config.padding_idx, num_embeddings)?;
        let max_norm = MaxNorm::new("embedding_bag", config.max_norm, config.norm_type)?;
        let weight = table([num_embeddings, embedding_dim], std, padding_idx)?;
        Ok(Self { weight, padding_idx, max_norm, config })
    }

    /// Returns the table of vectors, of shape `[num_embeddings, embedding_dim]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Returns the concatenated indices, and the start of each bag.
    fn bags(&self, indices: &Tensor, offsets: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let integers = |kind| matches!(kind, Kind::Int64 | Kind::Int);
        let kind = indices.kind();
        if !integers(kind) || offsets.is_some_and(|offsets| offsets.kind() != kind) {
            return Err(refused(format!(
                "the indices are {}, but indices and offsets must have the same dtype, int64 or \
                 int32",
                dtype_name(kind)
            )));
        }
        match (indices.size().as_slice(), offsets) {
            (&[_], Some(offsets)) if offsets.dim() == 1 => {
                Ok((indices.shallow_clone(), offsets.shallow_clone()))
            }
            (&[bags, length], None) => {
                let options = (kind, indices.device());
                let starts = bags + i64::from(self.config.include_last_offset);
                let starts = Tensor::f_arange(starts, options)?.f_mul_scalar(length)?;
                Ok((indices.f_reshape([-1])?, starts))
            }
            (size, Some(_)) => Err(refused(format!(
                "with offsets, the indices of all bags must be concatenated to one dimension, and \
                 the offsets must be [bags]; the indices are {size:?}"
            ))),
            (size, None) => Err(refused(format!(
                "indices without offsets must be [bags, length], but are {size:?}"
            ))),
        }
    }

    /// Returns the arguments of the lookup: a table of vectors, the indices to look up in it, and
    /// the padding index. Usually these are the layer's weight, the indices `all` and the layer's
    /// padding index. If the output must be rescaled, or gradients are divided by frequency, looks
    /// the vectors up first, and returns them as the table, with the indices 0, 1, 2 and so on.
    fn rows(&self, all: Tensor, cx: &Context) -> Result<(Tensor, Tensor, Option<i64>)> {
        let (scales, limit) = (self.config.scale_grad_by_freq, self.max_norm);
        if let (Some(limit), true) = (limit, changes_table(cx)) {
            limit.rescale(&self.weight, &all)?;
        }
        let limit = limit.filter(|_| !changes_table(cx));
        if !scales && limit.is_none() {
            return Ok((self.weight.shallow_clone(), all, self.padding_idx));
        }
        let padding_idx = self.padding_idx.unwrap_or(-1);
        let rows = Tensor::f_embedding(&self.weight, &all, padding_idx, scales, false)?;
        if let Some(limit) = limit {
            limit.rescale_all(&rows)?;
        }
        let count = rows.size()[0];
        let places = Tensor::f_arange(count, (all.kind(), all.device()))?;
        match self.padding_idx {
            None => Ok((rows, places, None)),
            // Padding vectors must not count in the bag. Therefore they get the index of an
            // appended row of zeros, which becomes the padding index.
            Some(index) => {
                let (kind, device) = (rows.kind(), rows.device());
                let none = Tensor::f_zeros([1, rows.size()[1]], (kind, device))?;
                let places = places.f_masked_fill(&all.f_eq(index)?, count)?;
                Ok((Tensor::f_cat(&[&rows, &none], 0)?, places, Some(count)))
            }
        }
    }
}

impl Visit for EmbeddingBag {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_table(visitor, &self.weight, self.max_norm);
    }
}

impl Forward for EmbeddingBag {
    /// The indices, the offsets of the bags, and the weights of the vectors.
    type Input = (&'static Tensor, Option<&'static Tensor>, Option<&'static Tensor>);
    type Output = Tensor;

    fn forward_with(
        &self,
        (indices, offsets, weights): (&Tensor, Option<&Tensor>, Option<&Tensor>),
        cx: &Context,
    ) -> Result<Tensor> {
        let EmbeddingBagConfig { mode, include_last_offset, .. } = self.config;
        let (all, offsets) = self.bags(indices, offsets)?;
        let weights = match weights {
            Some(_) if mode != BagMode::Sum => {
                return Err(refused(format!(
                    "weights need the mode Sum, but the mode is {mode:?}"
                )));
            }
            Some(weights) if weights.size() != indices.size() => {
                return Err(refused(format!(
                    "the weights are {:?}, but must have the shape of the indices, {:?}",
                    weights.size(),
                    indices.size()
                )));
            }
            Some(weights) => Some(weights.f_reshape([-1])?.f_to_kind(self.weight.kind())?),
            None => None,
        };
        let number = match mode {
            BagMode::Sum => 0,
            BagMode::Mean => 1,
            BagMode::Max => 2,
        };
        let (table, all, padding_idx) = self.rows(all, cx)?;
        let (output, ..) = Tensor::f_embedding_bag_padding_idx(
            &table,
            &all,
            &offsets,
            false,
            number,
            false,
            weights.as_ref(),
            include_last_offset,
            padding_idx,
        )?;
        Ok(output)
    }
}

fn refused(why: String) -> Error {
    Error::config(format!("embedding_bag: {why}"))
}
