use std::path::{Path, PathBuf};

use tch::Kind;

use super::mapped;
use crate::{
    Error, Result,
    data::{Batch, MapDataset, SharedTensor},
    random::Rng,
};

/// The integer type in which a token is stored in the file. The byte order is little-endian, as in
/// files that numpy's `tofile` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenWidth {
    /// `uint16`, for vocabularies of at most 65536 tokens, as in nanoGPT's `train.bin`.
    U16,
    /// `uint32`.
    U32,
}

/// A data set of windows of consecutive tokens in a file, for a model that predicts the next token.
/// The file contains only tokens and has no header, as in nanoGPT. The file is mapped into memory,
/// so it may be larger than the machine's memory.
///
/// An example is a [`Batch`] of int64. `input` and `target` have the shape `[length]`. `target`
/// contains, for each token of `input`, the next token of the file.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, data::{DataModule, MapDataset, TokenFile, TokenWidth}};
///
/// # fn main() -> Result<()> {
/// let tokens = |path: &str| TokenFile::open(path, TokenWidth::U16, 1024);
/// let train = tokens("train.bin")?.random(8192)?.vocabulary(50257);
/// let val = tokens("val.bin")?.vocabulary(50257);
/// let data = DataModule::new("openwebtext", train.shared(), val.shared(), 12);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    tokens: SharedTensor,
    /// A bit mask that keeps the bits of one token: 0xffff or 0xffffffff.
    bits: i64,
    count: i64,
    length: i64,
    starts: Starts,
    vocabulary: Option<i64>,
}

/// Where windows begin.
#[derive(Debug, Clone, Copy)]
enum Starts {
    /// A window begins at every multiple of this number of tokens.
    Every(i64),
    /// An epoch has this number of windows, which begin at random positions.
    Anywhere(i64),
}

impl TokenFile {
    /// Opens a file of tokens. By default, windows of `length` tokens follow each other without
    /// overlap.
    ///
    /// # Errors
    /// When the file cannot be mapped, does not consist of whole tokens, or has at most `length`
    /// tokens.
    pub fn open(path: impl AsRef<Path>, width: TokenWidth, length: i64) -> Result<Self> {
        let path = path.as_ref();
        let bytes = mapped::bytes(path)?;
        let (size, kind) = match width {
            TokenWidth::U16 => (2, Kind::Int16),
            TokenWidth::U32 => (4, Kind::Int),
        };
        let all = bytes.numel() as i64;
        let refused = |why: String| Err(Error::config(format!("{}: {why}", path.display())));
        if all % size != 0 {
            return refused(format!(
                "{all} bytes are not a whole number of tokens of {size} bytes"
            ));
        }
        let count = all / size;
        if length < 1 || count <= length {
            return refused(format!(
                "a window of {length} tokens and the token after it do not fit into {count} \
                 tokens: choose a length from 1 to {}",
                count - 1
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            tokens: bytes.f_view_dtype(kind)?.into(),
            bits: (1 << (8 * size)) - 1,
            count,
            length,
            starts: Starts::Every(length),
            vocabulary: None,
        })
    }

    /// Lets a window begin at every `stride`-th token. If `stride` is less than the length of a
    /// window, the windows overlap.
    ///
    /// # Errors
    /// When the stride is below 1.
    pub fn stride(mut self, stride: i64) -> Result<Self> {
        if stride < 1 {
            return Err(Error::config(format!("stride {stride}: it must be at least 1")));
        }
        self.starts = Starts::Every(stride);
        Ok(self)
    }

    /// Lets each window begin at a random position, as nanoGPT does. An epoch then has `windows`
    /// windows. The position of a window depends only on the run's seed, the epoch and the window's
    /// index, so a resumed run continues with the same windows.
    ///
    /// # Errors
    /// When `windows` is below 1.
    pub fn random(mut self, windows: i64) -> Result<Self> {
        if windows < 1 {
            return Err(Error::config(format!(
                "the number of random windows is {windows}, but must be at least 1"
            )));
        }
        self.starts = Starts::Anywhere(windows);
        Ok(self)
    }

    /// Sets the size of the vocabulary. Reading a window then fails if a token is not below this
    /// size, for example because the file was written with another token width.
    #[must_use]
    pub fn vocabulary(mut self, tokens: i64) -> Self {
        self.vocabulary = Some(tokens);
        self
    }

    /// Returns the number of tokens in the file.
    pub fn tokens(&self) -> i64 {
        self.count
    }
}

impl MapDataset for TokenFile {
    type Example = Batch;

    fn len(&self) -> i64 {
        match self.starts {
            Starts::Every(stride) => (self.count - 1 - self.length) / stride + 1,
            Starts::Anywhere(windows) => windows,
        }
    }

    fn get(&self, index: i64, rng: &mut Rng) -> Result<Batch> {
        let start = match self.starts {
            Starts::Every(stride) => index * stride,
            Starts::Anywhere(_) => rng.below(self.count - self.length),
        };
        let window = self.tokens.get().f_narrow(0, start, self.length + 1)?;
        // libtorch reads the tokens as signed integers, so a token whose highest bit is set is
        // negative before the mask is applied.
        let window = window.f_to_kind(Kind::Int64)?.f_bitwise_and(self.bits)?;
        if let Some(most) = self.vocabulary {
            let largest = window.f_max()?.f_int64_value(&[])?;
            if largest >= most {
                return Err(Error::config(format!(
                    "{}: the token {largest} is not below the size of the vocabulary, {most}: was \
                     the file written with another token width or tokenizer?",
                    self.path.display()
                )));
            }
        }
        let part = |start| window.f_narrow(0, start, self.length);
        Ok(Batch { input: part(0)?, target: part(1)? })
    }
}
