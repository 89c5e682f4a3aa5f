//! Embeddings: layers that look up vectors in a table.

mod bag;
mod rescale;

use tch::Tensor;

use self::rescale::MaxNorm;
use super::{Context, Module, Visit, Visitor, check::are_positive, init};
use crate::{Error, Result, nn::Role};

pub use bag::{BagMode, EmbeddingBag, EmbeddingBagConfig};

/// The options of an [`Embedding`]. The defaults are those of nn.Embedding.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingConfig {
    /// The number of vectors in the table.
    pub num_embeddings: i64,
    /// The number of elements of each vector.
    pub embedding_dim: i64,
    /// The index that stands for padding. The vector at this index starts as zeros and gets no
    /// gradient. A negative index counts from the end of the table.
    pub padding_idx: Option<i64>,
    /// The largest norm of a vector. When a longer vector is looked up, it is scaled down to this
    /// norm. In training the vector is scaled in the table itself, as in torch, and the trainer
    /// restores the table if it skips the step. In evaluation only the output is scaled, unlike in
    /// torch, which changes the table in evaluation, too.
    pub max_norm: Option<f64>,
    /// The exponent p of the norm that `max_norm` limits.
    pub norm_type: f64,
    /// Whether the gradient of a vector is divided by the number of times that the batch uses the
    /// vector.
    pub scale_grad_by_freq: bool,
    /// The standard deviation of the initial values. If the table is also the weight of an output
    /// layer, use a small value (0.02 in GPT-2).
    pub std: f64,
}

impl EmbeddingConfig {
    /// Returns options for a table of `num_embeddings` vectors with initial values from N(0, 1), as
    /// in PyTorch.
    pub fn new(num_embeddings: i64, embedding_dim: i64) -> Self {
        Self {
            num_embeddings,
            embedding_dim,
            padding_idx: None,
            max_norm: None,
            norm_type: 2.0,
            scale_grad_by_freq: false,
            std: 1.0,
        }
    }
}

/// Looks up the vectors of int64 indices `[…]`, and returns `[…, embedding_dim]`; nn.Embedding.
/// There is no option `sparse`: gradients are dense.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
    padding_idx: Option<i64>,
    max_norm: Option<MaxNorm>,
    scale_grad_by_freq: bool,
}

impl Embedding {
    /// Creates the layer. Draws the table of vectors from N(0, std²). The padding vector is zero.
    ///
    /// # Errors
    /// When a size is below 1, `padding_idx` is not an index of the table, or `max_norm` or
    /// `norm_type` is not above 0.
    pub fn new(config: EmbeddingConfig) -> Result<Self> {
        let EmbeddingConfig { num_embeddings, embedding_dim, scale_grad_by_freq, std, .. } = config;
        are_positive("embedding", "num_embeddings", &[num_embeddings])?;
        are_positive("embedding", "embedding_dim", &[embedding_dim])?;
        let padding_idx = padding_index(config.padding_idx, num_embeddings)?;
        let max_norm = MaxNorm::new("embedding", config.max_norm, config.norm_type)?;
        let weight = table([num_embeddings, embedding_dim], std, padding_idx)?;
        Ok(Self { weight, padding_idx, max_norm, scale_grad_by_freq })
    }

    /// Returns the table of vectors, of shape `[num_embeddings, embedding_dim]`. An output layer
    /// can use it as its weight (weight tying).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

/// Converts a padding index, which may count from the end, to an index that counts from the start.
fn padding_index(index: Option<i64>, num_embeddings: i64) -> Result<Option<i64>> {
    match index {
        Some(index) if !(-num_embeddings..num_embeddings).contains(&index) => {
            Err(Error::config(format!(
                "embedding: padding_idx {index} is outside the table of {num_embeddings} vectors"
            )))
        }
        Some(index) if index < 0 => Ok(Some(num_embeddings + index)),
        index => Ok(index),
    }
}

/// Creates a table with random values from N(0, std²), and with zeros for the padding vector.
fn table(shape: [i64; 2], std: f64, padding_idx: Option<i64>) -> Result<Tensor> {
    let weight = init::normal(&shape, std)?;
    if let Some(index) = padding_idx {
        let _ = tch::no_grad(|| weight.f_select(0, index)?.f_zero_())?;
    }
    Ok(weight)
}

/// Returns whether a vector whose norm exceeds `max_norm` is rescaled in the table itself, and not
/// only in the output.
fn changes_table(cx: &Context) -> bool {
    cx.is_training() && !cx.is_recomputing()
}

/// Passes the table of vectors to `visitor`. If `max_norm` is set, also says that the forward pass
/// changes the table.
fn visit_table(visitor: &mut dyn Visitor, weight: &Tensor, max_norm: Option<MaxNorm>) {
    match max_norm {
        Some(_) => visitor.changed_in_forward("weight", weight),
        None => visitor.tensor("weight", weight, Role::Parameter),
    }
}

impl Visit for Embedding {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_table(visitor, &self.weight, self.max_norm);
    }
}

impl Module for Embedding {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        // -1 is libtorch's value for "no padding".
        let padding_idx = self.padding_idx.unwrap_or(-1);
        let scales = self.scale_grad_by_freq;
        if let (Some(limit), true) = (self.max_norm, changes_table(cx)) {
            limit.rescale(&self.weight, input)?;
        }
        let output = Tensor::f_embedding(&self.weight, input, padding_idx, scales, false)?;
        if let (Some(limit), false) = (self.max_norm, changes_table(cx)) {
            let width = self.weight.size()[1];
            limit.rescale_all(&output.f_view([-1, width])?)?;
        }
        Ok(output)
    }
}
