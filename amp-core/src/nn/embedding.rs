use tch::Tensor;

use super::{Context, Module, Role, Visit, Visitor, init};
use crate::Result;

/// The options of an [`Embedding`].
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingConfig {
    /// Size of the dictionary.
    pub num_embeddings: i64,
    /// Size of each vector.
    pub embedding_dim: i64,
    /// Standard deviation of the initial values. An output layer that shares the table wants a
    /// small one (GPT-2 has 0.02).
    pub std: f64,
}

impl EmbeddingConfig {
    /// A table of `num_embeddings` vectors from N(0, 1), as in PyTorch.
    pub fn new(num_embeddings: i64, embedding_dim: i64) -> Self {
        Self { num_embeddings, embedding_dim, std: 1.0 }
    }
}

/// Looks up `[…]` int64 indices: `[…, embedding_dim]`; nn.Embedding.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Draws the table from N(0, std²).
    ///
    /// # Errors
    /// When a size is negative.
    pub fn new(config: EmbeddingConfig) -> Result<Self> {
        let weight = init::normal(&[config.num_embeddings, config.embedding_dim], config.std)?;
        Ok(Self { weight })
    }

    /// The table, `[num_embeddings, embedding_dim]`, for tying it to an output layer.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Visit for Embedding {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
    }
}

impl Module for Embedding {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.weight, input, -1, false, false)?)
    }
}
