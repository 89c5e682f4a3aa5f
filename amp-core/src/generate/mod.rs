//! Text generation: a causal language model continues a prompt token by token.

mod sampling;

pub use sampling::Sampling;

use tch::{Kind, Tensor, no_grad};

use crate::{
    Error, Result,
    nn::{Context, Forward, KvCache},
    precision::Policy,
    random::{Draws, Rng},
};

/// The options for continuing a prompt. The model must map token ids of shape `[N, L]` to logits of
/// shape `[N, L, vocabulary]`. The logits at a position predict the next token from the tokens
/// up to that position. Before generation, move the model to the policy's device and
/// dtype with [`place`](crate::nn::place).
///
/// The attention layers keep the keys and values of earlier tokens in a [`KvCache`]; its
/// documentation lists the requirements on the model. If a sequence becomes longer than `context`,
/// the positions of all tokens in the model's window shift. Then the cached keys and values are no
/// longer valid, and each further token is computed from the last `context` tokens without the
/// cache, as in nanoGPT.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     generate::{Generation, Sampling},
///     hardware::parse_device,
///     nn::{self, AttentionMask},
///     precision::Policy,
///     prelude::*,
/// };
///
/// #[derive(LightningModule)]
/// #[forward(|ids| {
///     let x = words(ids)?.f_add(&places(&cx.places(ids)?)?)?;
///     head(&block(&x)?)
/// })]
/// #[loss(cross_entropy)]
/// #[optimizer(adamw, lr = 3e-4)]
/// struct Writer {
///     #[layer(embedding(256, 64))]
///     words: Embedding,
///     #[layer(embedding(128, 64))]
///     places: Embedding,
///     #[layer(transformer_encoder_layer(64, 4, norm_first = true, causal = true))]
///     block: TransformerEncoderLayer,
///     #[layer(linear(64, 256))]
///     head: Linear,
/// }
///
/// fn main() -> Result<()> {
///     let model = Writer::from_checkpoint("runs/writer/best")?;
///     let policy = Policy::new(Precision::Bf16True, parse_device("auto")?);
///     nn::place(&model, policy, &Default::default())?;
///     let prompt = Tensor::from_slice(&[72_i64, 101, 108, 108, 111]).view([1, 5]);
///     let options = Generation {
///         sampling: Sampling { temperature: 0.8, top_k: Some(200), ..Sampling::default() },
///         ..Generation::new(100, 128)
///     };
///     println!("{:?}", options.run(&model, &prompt, policy)?);
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Generation {
    /// The largest number of tokens that are added to the prompt.
    pub max_new_tokens: i64,
    /// The largest number of tokens that the model can read at once (GPT-2's `n_positions`).
    pub context: i64,
    /// How the next token is chosen from its probabilities. The default chooses the most likely
    /// token.
    pub sampling: Sampling,
    /// The id of the token that ends a sequence. After this token, the sequence is filled with the
    /// same token. Generation stops when all sequences have ended.
    pub end: Option<i64>,
    /// The seed of the random numbers that choose tokens. Each sequence of the batch has its own
    /// random number generator, so its tokens do not depend on the other sequences.
    pub seed: u64,
    /// Whether the attention layers keep the keys and values of earlier tokens. If not, the model
    /// computes the whole sequence again for every token.
    pub cache: bool,
}

impl Generation {
    /// Creates options that add up to `max_new_tokens` tokens, choose the most likely token each
    /// time, and use the cache.
    pub fn new(max_new_tokens: i64, context: i64) -> Self {
        let sampling = Sampling::default();
        Self { max_new_tokens, context, sampling, end: None, seed: 0, cache: true }
    }

    /// Returns the prompt, of shape `[N, L]`, with the generated tokens appended, of shape `[N, L +
    /// new]`. The result is int64 on the CPU.
    ///
    /// # Errors
    /// For the same reasons as [`run_with`](Self::run_with).
    pub fn run<M>(&self, model: &M, prompt: &Tensor, policy: Policy) -> Result<Tensor>
    where
        M: Forward<Input = (&'static Tensor,), Output = Tensor> + ?Sized,
    {
        self.run_with(model, prompt, policy, |_| Ok(()))
    }

    /// Continues the prompt as [`run`](Self::run) does. In addition, calls `show` with the next
    /// token of each of the N sequences, as soon as these tokens are chosen.
    ///
    /// # Errors
    /// When an option is out of range, the prompt does not consist of integers in the shape `[N,
    /// L]`, or `show` fails. When the model fails, cannot use a [`KvCache`], returns an output
    /// whose shape is not `[N, L, vocabulary]`, or returns logits that are not finite.
    pub fn run_with<M>(
        &self,
        model: &M,
        prompt: &Tensor,
        policy: Policy,
        mut show: impl FnMut(&[i64]) -> Result<()>,
    ) -> Result<Tensor>
    where
        M: Forward<Input = (&'static Tensor,), Output = Tensor> + ?Sized,
    {
        let rows = self.check(prompt)?;
        let draws = Draws::new(self.seed, 0);
        let mut streams: Vec<Rng> = (0..rows).map(|row| draws.rng(row)).collect();
        let mut ended = vec![false; streams.len()];
        let mut ids = prompt.f_to_kind(Kind::Int64)?.f_to_device(policy.device)?;
        let mut cache = KvCache::new();
        for _ in 0..self.max_new_tokens {
            let logits = self.next_logits(model, &ids, &mut cache, policy)?;
            let mut next = self.sampling.choose(&logits, &mut streams)?;
            for (token, ended) in next.iter_mut().zip(&mut ended) {
                match self.end {
                    Some(end) if *ended => *token = end,
                    end => *ended = Some(*token) == end,
                }
            }
            show(&next)?;
            let next = Tensor::f_from_slice(&next)?.f_view([rows, 1])?;
            ids = Tensor::f_cat(&[&ids, &next.f_to_device(policy.device)?], 1)?;
            if ended.iter().all(|ended| *ended) {
                break;
            }
        }
        Ok(ids.f_to_device(tch::Device::Cpu)?)
    }

    /// Returns the logits of the token that follows `ids`, in the shape `[N, vocabulary]`.
    fn next_logits<M>(
        &self,
        model: &M,
        ids: &Tensor,
        cache: &mut KvCache,
        policy: Policy,
    ) -> Result<Tensor>
    where
        M: Forward<Input = (&'static Tensor,), Output = Tensor> + ?Sized,
    {
        let cx = Context::new(policy, false);
        let length = ids.size()[1];
        let (seen, logits) = if self.cache && length <= self.context {
            let seen = length - cache.tokens();
            let new = ids.f_narrow(1, length - seen, seen)?;
            (seen, cache.extend(model, &new, cx)?)
        } else {
            let seen = length.min(self.context);
            let last = ids.f_narrow(1, length - seen, seen)?;
            let _autocast = policy.autocast()?;
            (seen, no_grad(|| model.forward_with((&last,), &cx))?)
        };
        match logits.size().as_slice() {
            [n, l, _] if [*n, *l] == [ids.size()[0], seen] => Ok(logits.f_select(1, -1)?),
            size => Err(refused(format!(
                "the model returned the shape {size:?} for ids of shape [{}, {seen}], not [N, L, vocabulary]",
                ids.size()[0]
            ))),
        }
    }

    /// Checks the options and the prompt, and returns the number of sequences.
    fn check(&self, prompt: &Tensor) -> Result<i64> {
        self.sampling.check()?;
        if self.max_new_tokens < 1 || self.context < 1 {
            return Err(refused(format!(
                "max_new_tokens {} and context {}: each must be at least 1",
                self.max_new_tokens, self.context
            )));
        }
        let is_whole = matches!(prompt.kind(), Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Uint8);
        match prompt.size().as_slice() {
            [rows, length] if *rows > 0 && *length > 0 && is_whole => Ok(*rows),
            size => Err(refused(format!(
                "the prompt is {size:?} of dtype {:?}, but must be [N, L] of integers with at \
                 least one token",
                prompt.kind()
            ))),
        }
    }
}

fn refused(why: String) -> Error {
    Error::config(format!("generation: {why}"))
}
