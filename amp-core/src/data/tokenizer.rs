//! Encodes text by a Hugging Face `tokenizer.json`.

use std::path::{Path, PathBuf};

use tch::Tensor;
use tokenizers::{
    EncodeInput, Encoding, PaddingDirection, PaddingParams, PaddingStrategy, TruncationParams,
};

use super::Pad;
use crate::{Batch, Error, Result};

/// A Hugging Face tokenizer, read from the `tokenizer.json` of a model. The tokenizer converts text
/// to token ids, and converts ids to text. It uses the Rust crate on which Python's package
/// `tokenizers` is built.
///
/// Truncation and padding follow the settings in the file. A method of this type that declares
/// truncation or padding replaces the file's setting.
///
/// ```no_run,standalone_crate
/// use amp_core::{Batch, Result, data::{DataModule, Tokenizer, Tokens}, tch::Tensor};
///
/// #[derive(Batch)]
/// struct Reviews {
///     tokens: Tokens,
///     class: Tensor,
/// }
///
/// # fn main() -> Result<()> {
/// let tokenizer = Tokenizer::open("bert-base-uncased/tokenizer.json")?.truncated(128)?.padded("[PAD]")?;
/// let reviews = |texts: &[&str], classes: &[i64]| -> Result<Reviews> {
///     Ok(Reviews { tokens: tokenizer.batch(texts)?, class: Tensor::f_from_slice(classes)? })
/// };
/// let (train, val) = (reviews(&["good", "not good"], &[1, 0])?, reviews(&["fine"], &[1])?);
/// let data = DataModule::new("reviews", train, val, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    special: bool,
}

/// Encoded texts, padded to the same length. The names of the fields are those of the inputs of
/// transformers' models.
#[derive(Debug, Batch)]
pub struct Tokens {
    /// The token ids, int64 of shape `[N, L]`.
    #[batch(ids)]
    pub input_ids: Tensor,
    /// The token types, int64 of shape `[N, L]`. They are 1 for tokens of the second text of a
    /// pair, if the tokenizer's file declares token types, and 0 otherwise.
    #[batch(ids)]
    pub token_type_ids: Tensor,
    /// Booleans of shape `[N, L]`, true for tokens and false for padding.
    #[batch(mask)]
    pub attention_mask: Tensor,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a tokenizer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let bytes = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| refused(&path, "not a tokenizer.json", &*error))?;
        Ok(Self { path, inner, special: true })
    }

    /// Truncates texts to at most `length` tokens, including special tokens. Of a pair the longer
    /// text is truncated, unless the file declares another strategy.
    ///
    /// # Errors
    /// When special tokens alone fill `length`.
    pub fn truncated(mut self, length: usize) -> Result<Self> {
        let special = if self.special { self.encoded(("", ""), true)?.len() } else { 0 };
        if length <= special {
            return Err(Error::config(format!(
                "{}: texts are truncated to {length} tokens, but the tokenizer adds {special} \
                 special tokens: choose a length above {special}",
                self.path.display()
            )));
        }
        let own = self.inner.get_truncation().cloned().unwrap_or_default();
        let truncation = TruncationParams { max_length: length, stride: 0, ..own };
        let set = self.inner.with_truncation(Some(truncation)).map(drop);
        set.map_err(|error| refused(&self.path, "truncation", &*error))?;
        Ok(self)
    }

    /// Pads texts with this token to the longest text of a batch.
    ///
    /// # Errors
    /// When the tokenizer does not have the token.
    pub fn padded(mut self, token: &str) -> Result<Self> {
        let Some(id) = self.inner.token_to_id(token) else {
            return Err(Error::config(format!(
                "{}: the tokenizer has no token `{token}`",
                self.path.display()
            )));
        };
        let padding = PaddingParams { pad_id: id, pad_token: token.to_owned(), ..self.padding() };
        self.inner.with_padding(Some(padding));
        Ok(self)
    }

    /// Pads every batch to this number of tokens. Has an effect only if the file or an earlier call
    /// of [`padded`](Self::padded) has declared padding.
    #[must_use]
    pub fn padded_to(self, length: usize) -> Self {
        self.with_padding(|padding| padding.strategy = PaddingStrategy::Fixed(length))
    }

    /// Pads every batch to the next multiple of this number of tokens. Has an effect only if the
    /// file or an earlier call of [`padded`](Self::padded) has declared padding.
    #[must_use]
    pub fn padded_to_multiple_of(self, length: usize) -> Self {
        self.with_padding(|padding| padding.pad_to_multiple_of = Some(length))
    }

    /// Adds padding before the text instead of after it, as text generation needs it. Has an effect
    /// only if the file or an earlier call of [`padded`](Self::padded) has declared padding.
    #[must_use]
    pub fn padded_left(self) -> Self {
        self.with_padding(|padding| padding.direction = PaddingDirection::Left)
    }

    /// Leaves out the special tokens that the tokenizer adds around a text, such as `[CLS]`.
    #[must_use]
    pub fn without_special_tokens(mut self) -> Self {
        self.special = false;
        self
    }

    fn with_padding(mut self, change: impl FnOnce(&mut PaddingParams)) -> Self {
        if let Some(padding) = self.inner.get_padding_mut() {
            change(padding);
        }
        self
    }

    fn padding(&self) -> PaddingParams {
        self.inner.get_padding().cloned().unwrap_or_default()
    }

    /// Returns the number of tokens in the vocabulary, which is also the number of rows that an
    /// embedding needs.
    pub fn vocabulary(&self) -> i64 {
        self.inner.get_vocab_size(true) as i64
    }

    /// Returns the id of a token, or `None` if the vocabulary does not have the token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Returns the token ids of one text, without padding. The text is truncated if truncation is
    /// declared.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn ids(&self, text: &str) -> Result<Vec<i64>> {
        let encoded = self.encoded(text, self.special)?;
        let mask = encoded.get_attention_mask().iter();
        let kept = encoded.get_ids().iter().zip(mask).filter(|(_, mask)| **mask != 0);
        Ok(kept.map(|(id, _)| i64::from(*id)).collect())
    }

    /// Encodes several texts as a batch of token ids.
    ///
    /// # Errors
    /// When there is no text, the tokenizer cannot encode a text, or texts differ in length and no
    /// padding is declared.
    pub fn batch(&self, texts: &[impl AsRef<str>]) -> Result<Tokens> {
        self.encode(texts.iter().map(|text| text.as_ref().into()).collect())
    }

    /// Encodes several pairs of texts, for example questions with their answers, as a batch of
    /// token ids.
    ///
    /// # Errors
    /// For the same reasons as [`batch`](Self::batch).
    pub fn batch_of_pairs(&self, pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Tokens> {
        self.encode(pairs.iter().map(|(one, two)| (one.as_ref(), two.as_ref()).into()).collect())
    }

    /// Returns the [`Pad`] with which [`Collate`](super::Collate) pads a field of token ids.
    ///
    /// # Errors
    /// When no padding is declared.
    pub fn pad(&self, field: &str) -> Result<Pad> {
        match self.inner.get_padding() {
            Some(padding) => Ok(Pad::new(field, f64::from(padding.pad_id))),
            None => Err(self.without_padding()),
        }
    }

    /// Decodes ids to text, without special tokens.
    ///
    /// # Errors
    /// When an id is negative or too large, or the tokenizer cannot decode the ids.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let known = |id: &i64| {
            let id = u32::try_from(*id).ok().filter(|id| self.inner.id_to_token(*id).is_some());
            id.ok_or_else(|| {
                let path = self.path.display();
                Error::config(format!("{path}: one of the ids {ids:?} belongs to no token"))
            })
        };
        let ids = ids.iter().map(known).collect::<Result<Vec<_>>>()?;
        let text = self.inner.decode(&ids, true);
        text.map_err(|error| refused(&self.path, "these ids cannot be decoded", &*error))
    }

    fn encoded<'s>(&self, text: impl Into<EncodeInput<'s>>, special: bool) -> Result<Encoding> {
        let encoded = self.inner.encode(text.into(), special);
        encoded.map_err(|error| refused(&self.path, "a text cannot be encoded", &*error))
    }

    fn encode(&self, texts: Vec<EncodeInput<'_>>) -> Result<Tokens> {
        let encoded = self.inner.encode_batch(texts, self.special);
        let encoded =
            encoded.map_err(|error| refused(&self.path, "a text cannot be encoded", &*error))?;
        let Some(first) = encoded.first() else {
            return Err(Error::config("a batch of tokens needs at least one text"));
        };
        let length = first.len();
        if encoded.iter().any(|one| one.len() != length) {
            return Err(self.without_padding());
        }
        let size = [encoded.len() as i64, length as i64];
        let field = |of: fn(&Encoding) -> &[u32]| -> Result<Tensor> {
            let all: Vec<i64> = encoded.iter().flat_map(of).copied().map(i64::from).collect();
            Ok(Tensor::f_from_slice(&all)?.f_view(size)?)
        };
        Ok(Tokens {
            input_ids: field(Encoding::get_ids)?,
            token_type_ids: field(Encoding::get_type_ids)?,
            attention_mask: field(Encoding::get_attention_mask)?.f_ne(0)?,
        })
    }

    fn without_padding(&self) -> Error {
        Error::config(format!(
            "{}: texts of different lengths need padding, but the tokenizer declares no padding \
             token: set one with Tokenizer::padded",
            self.path.display()
        ))
    }
}

fn refused(path: &Path, what: &str, error: &(dyn std::error::Error + Send + Sync)) -> Error {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    Error::config(format!("{}: {what}: {line}", path.display()))
}
