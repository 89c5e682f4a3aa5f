use tch::{Kind, Tensor};

use super::{Context, Forward, Module, Role, Visit, Visitor, init};
use crate::{Error, Result, precision::dtype_name};

/// The options of an [`Embedding`]; the defaults are nn.Embedding's.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingConfig {
    /// The number of vectors.
    pub num_embeddings: i64,
    /// The size of each vector.
    pub embedding_dim: i64,
    /// The padding index: its vector starts as zeros and gets no gradient. Negative values count
    /// from the end.
    pub padding_idx: Option<i64>,
    /// Whether the gradient of a vector is divided by the number of its uses in the batch.
    pub scale_grad_by_freq: bool,
    /// The standard deviation of the initial values. If an output layer shares the table, use a
    /// small value (0.02 in GPT-2).
    pub std: f64,
}

impl EmbeddingConfig {
    /// A table of `num_embeddings` vectors drawn from N(0, 1), as in PyTorch.
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

/// Looks up int64 indices `[…]`; the output is `[…, embedding_dim]`; nn.Embedding.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
    padding_idx: Option<i64>,
    scale_grad_by_freq: bool,
}

impl Embedding {
    /// Draws the table from N(0, std²); the padding vector is zeros.
    ///
    /// # Errors
    /// When a size is negative, or `padding_idx` is outside the dictionary.
    pub fn new(config: EmbeddingConfig) -> Result<Self> {
        let EmbeddingConfig { num_embeddings, embedding_dim, scale_grad_by_freq, std, .. } = config;
        let padding_idx = padding_index(config.padding_idx, num_embeddings)?;
        let weight = table([num_embeddings, embedding_dim], std, padding_idx)?;
        Ok(Self { weight, padding_idx, scale_grad_by_freq })
    }

    /// The table, `[num_embeddings, embedding_dim]`, for an output layer with tied weights.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

/// An index as counted from the start.
fn padding_index(index: Option<i64>, num_embeddings: i64) -> Result<Option<i64>> {
    match index {
        Some(index) if !(-num_embeddings..num_embeddings).contains(&index) => Err(Error::config(
            format!("embedding: padding_idx {index} is outside a dictionary of {num_embeddings}"),
        )),
        Some(index) if index < 0 => Ok(Some(num_embeddings + index)),
        index => Ok(index),
    }
}

/// A table drawn from N(0, std²), with zeros for the padding vector.
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
        // libtorch's value for "no padding".
        let padding_idx = self.padding_idx.unwrap_or(-1);
        let scales = self.scale_grad_by_freq;
        Ok(Tensor::f_embedding(&self.weight, input, padding_idx, scales, false)?)
    }
}

/// The options of an [`EmbeddingBag`]; the defaults are nn.EmbeddingBag's.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingBagConfig {
    /// The number of vectors.
    pub num_embeddings: i64,
    /// The size of each vector.
    pub embedding_dim: i64,
    /// How the vectors of a bag are combined.
    pub mode: BagMode,
    /// The padding index: it is left out of every bag, and its vector starts as zeros and gets no
    /// gradient. Negative values count from the end.
    pub padding_idx: Option<i64>,
    /// Whether the last offset is the end of the last bag.
    pub include_last_offset: bool,
    /// See [`EmbeddingConfig`].
    pub std: f64,
}

/// How an [`EmbeddingBag`] combines the vectors of a bag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BagMode {
    /// Their sum, weighted if there are weights.
    Sum,
    /// Their mean.
    #[default]
    Mean,
    /// The elementwise maximum.
    Max,
}

impl EmbeddingBagConfig {
    /// The mean of vectors drawn from N(0, 1).
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

/// Sums, means or maxima of looked-up vectors; nn.EmbeddingBag. An empty bag gives zeros.
/// `scale_grad_by_freq` is not supported, because on a CPU libtorch 2.11 divides by the counts of
/// wrong indices.
///
/// | input | shape |
/// | --- | --- |
/// | indices | `[N, L]`, bags of L, or `[all]` with offsets |
/// | offsets, for indices `[all]` | `[N]`: the start of each bag |
/// | weights, for sums | the shape of the indices |
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
    /// Draws the table from N(0, std²); the padding vector is zeros.
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

    /// The concatenated indices, and the start of each bag.
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
