use tch::{Kind, Tensor};

use super::{Context, Forward, Module, Role, Visit, Visitor, init};
use crate::{Error, Result, precision::dtype_name};

/// The options of an [`Embedding`]; the defaults are nn.Embedding's.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingConfig {
    /// Size of the dictionary.
    pub num_embeddings: i64,
    /// Size of each vector.
    pub embedding_dim: i64,
    /// The index of padding, whose vector starts as zeros and gets no gradient; negative ones count from the
    /// end of the dictionary.
    pub padding_idx: Option<i64>,
    /// Whether the gradient of a vector is divided by how often its index is in the batch.
    pub scale_grad_by_freq: bool,
    /// Standard deviation of the initial values. An output layer that shares the table needs a
    /// small one (GPT-2 has 0.02).
    pub std: f64,
}

impl EmbeddingConfig {
    /// A table of `num_embeddings` vectors from N(0, 1), as in PyTorch.
    pub fn new(num_embeddings: i64, embedding_dim: i64) -> Self {
        Self {
            num_embeddings,
            embedding_dim,
            padding_idx: None,
            scale_grad_by_freq: false,
            std: 1.0,
        }
    }
}

/// Looks up `[…]` int64 indices: `[…, embedding_dim]`; nn.Embedding.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
    padding_idx: Option<i64>,
    scale_grad_by_freq: bool,
}

impl Embedding {
    /// Draws the table from N(0, std²); the vector of padding is zeros.
    ///
    /// # Errors
    /// When a size is negative, or `padding_idx` is outside the dictionary.
    pub fn new(config: EmbeddingConfig) -> Result<Self> {
        let EmbeddingConfig { num_embeddings, embedding_dim, scale_grad_by_freq, std, .. } = config;
        let padding_idx = padding_index(config.padding_idx, num_embeddings)?;
        let weight = table([num_embeddings, embedding_dim], std, padding_idx)?;
        Ok(Self { weight, padding_idx, scale_grad_by_freq })
    }

    /// The table, `[num_embeddings, embedding_dim]`, for tying it to an output layer.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

/// An index counted from the start.
fn padding_index(index: Option<i64>, num_embeddings: i64) -> Result<Option<i64>> {
    match index {
        Some(index) if !(-num_embeddings..num_embeddings).contains(&index) => Err(Error::config(
            format!("embedding: padding_idx {index} is outside a dictionary of {num_embeddings}"),
        )),
        Some(index) if index < 0 => Ok(Some(num_embeddings + index)),
        index => Ok(index),
    }
}

/// A table from N(0, std²) with zeros for padding.
fn table(shape: [i64; 2], std: f64, padding_idx: Option<i64>) -> Result<Tensor> {
    let weight = init::normal(&shape, std)?;
    if let Some(index) = padding_idx {
        let _ = tch::no_grad(|| weight.f_select(0, index)?.f_zero_())?;
    }
    Ok(weight)
}

impl Visit for Embedding {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
    }
}

impl Module for Embedding {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        // libtorch's number for none.
        let padding_idx = self.padding_idx.unwrap_or(-1);
        let scales = self.scale_grad_by_freq;
        Ok(Tensor::f_embedding(&self.weight, input, padding_idx, scales, false)?)
    }
}

/// The options of an [`EmbeddingBag`]; the defaults are nn.EmbeddingBag's.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingBagConfig {
    /// Size of the dictionary.
    pub num_embeddings: i64,
    /// Size of each vector.
    pub embedding_dim: i64,
    /// What becomes of a bag's vectors.
    pub mode: BagMode,
    /// The index that is left out of every bag; its vector starts as zeros and gets no gradient. Negative
    /// ones count from the end of the dictionary.
    pub padding_idx: Option<i64>,
    /// Whether the last offset is the end of the last bag.
    pub include_last_offset: bool,
    /// As in [`EmbeddingConfig`].
    pub std: f64,
}

/// What an [`EmbeddingBag`] makes of a bag's vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BagMode {
    /// Their sum, weighted where there are weights.
    Sum,
    /// Their mean.
    #[default]
    Mean,
    /// The largest of each element.
    Max,
}

impl EmbeddingBagConfig {
    /// The mean of vectors from N(0, 1).
    pub fn new(num_embeddings: i64, embedding_dim: i64) -> Self {
        Self {
            num_embeddings,
            embedding_dim,
            mode: BagMode::Mean,
            padding_idx: None,
            include_last_offset: false,
            std: 1.0,
        }
    }
}

/// Sums, means or maxima of vectors that are looked up; nn.EmbeddingBag. An empty bag gives zeros. There is
/// no `scale_grad_by_freq`: on a CPU libtorch 2.11 divides by the counts of other indices.
///
/// | input | shape |
/// | --- | --- |
/// | indices | `[N, L]`, bags of L, or `[all]` with offsets |
/// | offsets, where indices are `[all]` | `[N]`: where each bag begins |
/// | weights, for sums | as the indices |
/// | output | `[N, embedding_dim]` |
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::EmbeddingBag, prelude::*};
///
/// /// Bags of words, one behind the other.
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
    config: EmbeddingBagConfig,
}

impl EmbeddingBag {
    /// Draws the table from N(0, std²); the vector of padding is zeros.
    ///
    /// # Errors
    /// When a size is negative, or `padding_idx` is outside the dictionary.
    pub fn new(config: EmbeddingBagConfig) -> Result<Self> {
        let EmbeddingBagConfig { num_embeddings, embedding_dim, std, .. } = config;
        let padding_idx = padding_index(config.padding_idx, num_embeddings)?;
        let weight = table([num_embeddings, embedding_dim], std, padding_idx)?;
        Ok(Self { weight, padding_idx, config })
    }

    /// The table, `[num_embeddings, embedding_dim]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Indices one behind the other, and where each bag begins.
    fn bags(&self, indices: &Tensor, offsets: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let integers = |kind| matches!(kind, Kind::Int64 | Kind::Int);
        let kind = indices.kind();
        if !integers(kind) || offsets.is_some_and(|offsets| offsets.kind() != kind) {
            return Err(refused(format!(
                "indices are {}, but indices and offsets must both be int64 or int32",
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
                "offsets are for indices one behind the other, [all], and have one dimension; the indices \
                 are {size:?}"
            ))),
            (size, None) => Err(refused(format!(
                "indices without offsets must be [bags, length], but are {size:?}"
            ))),
        }
    }
}

impl Visit for EmbeddingBag {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
    }
}

impl Forward for EmbeddingBag {
    /// Indices, offsets and weights.
    type Input = (&'static Tensor, Option<&'static Tensor>, Option<&'static Tensor>);
    type Output = Tensor;

    fn forward_with(
        &self,
        (indices, offsets, weights): (&Tensor, Option<&Tensor>, Option<&Tensor>),
        _: &Context,
    ) -> Result<Tensor> {
        let EmbeddingBagConfig { mode, include_last_offset, .. } = self.config;
        let (all, offsets) = self.bags(indices, offsets)?;
        let weights = match weights {
            Some(_) if mode != BagMode::Sum => {
                return Err(refused(format!("weights are for sums, and the mode is {mode:?}")));
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
        let (output, ..) = Tensor::f_embedding_bag_padding_idx(
            &self.weight,
            &all,
            &offsets,
            false,
            number,
            false,
            weights.as_ref(),
            include_last_offset,
            self.padding_idx,
        )?;
        Ok(output)
    }
}

fn refused(why: String) -> Error {
    Error::config(format!("embedding_bag: {why}"))
}
