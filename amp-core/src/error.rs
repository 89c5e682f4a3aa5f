//! The one error type. Every C++ exception ends here with its own text.

use std::path::PathBuf;

/// What can go wrong while a model is built, trained or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation; the text is the C++ exception's first line.
    #[error("libtorch: {0}")]
    Torch(String),
    /// An operation inside a module failed.
    #[error("in `{path}`: {source}")]
    In {
        /// The module's dotted path, as in `model.0`.
        path: String,
        /// What failed there.
        source: Box<Error>,
    },
    /// Something the caller asked for cannot be done; the text says what to do instead.
    #[error("{0}")]
    Config(String),
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A run did not compute in the dtypes its precision promises.
    #[error("{0}")]
    Precision(String),
    /// A run was ended since a step was not finite; the text names the first place.
    #[error("{0}")]
    NonFinite(String),
    /// A run broke a rule that holds in every training run.
    #[error("{text}")]
    Invariant {
        /// The rule's name: one of [`trainer::Invariant`](crate::trainer::Invariant).
        name: &'static str,
        /// Step, tensor and rule, the likely cause and what to do about it, in one line.
        text: String,
    },
    /// Figures were made on a kind of machine that this one cannot be held against.
    #[error("{0}")]
    NotComparable(String),
    /// The scaler's methods were called out of order, or its scale fell too low.
    #[error("grad scaler: {0}")]
    Scaler(String),
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A [`Error::Config`] with this text.
    pub fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    /// Wraps an I/O error with the file it happened to.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Whether a device, or the host, has no room left. libtorch says so in the text alone, since
    /// the type of its exception is lost on the way here.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::In { source, .. } => source.is_out_of_memory(),
            Self::Torch(text) => {
                ["out of memory", "can't allocate memory"].iter().any(|sign| text.contains(sign))
            }
            _ => false,
        }
    }

    /// Names the module an error came from; the innermost name wins, since its path is whole.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        match self {
            Self::In { .. } => self,
            _ if path.is_empty() => self,
            source => Self::In { path: path.to_owned(), source: Box::new(source) },
        }
    }

    /// Names the training batch in which a model or its loss found a mistake, both counted from 0.
    pub(crate) fn in_batch(self, epoch: i64, batch: i64) -> Self {
        match self {
            Self::In { path, source } => {
                Self::In { path, source: Box::new(source.in_batch(epoch, batch)) }
            }
            Self::Config(text) => Self::Config(format!("{text} (batch {batch} of epoch {epoch})")),
            other => other,
        }
    }

    /// Names the example of a data set that could not be read, counted from 0.
    pub(crate) fn of_example(self, index: i64) -> Self {
        match self {
            Self::Torch(text) => Self::Torch(format!("{text} (example {index} of the data set)")),
            other => Self::Config(format!("example {index} of the data set: {other}")),
        }
    }

    /// libtorch's text without the C++ stack trace that follows its first line.
    pub(crate) fn torch(text: &str) -> Self {
        let head = text.split("\nException raised from").next().unwrap_or(text);
        Self::Torch(head.trim_end().to_owned())
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(text) => Self::torch(&text),
            other => Self::Torch(other.to_string()),
        }
    }
}

/// Some of these names, for the text of an error: `` `a`, `b`, … ``.
pub(crate) fn some_names<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 8;
    let mut names = names.map(|name| format!("`{name}`"));
    let mut shown: Vec<String> = names.by_ref().take(SHOWN).collect();
    shown.extend(names.next().map(|_| "…".to_owned()));
    shown.join(", ")
}
