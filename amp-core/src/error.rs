//! The error type of this crate. A C++ exception becomes an error with the exception's own text.

use std::path::PathBuf;

/// The errors of building, training and checking a model.
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
    /// The caller requested something impossible. The text says what to do instead. A command then
    /// ends with exit code 2.
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
    /// A data set could not be read: its code panicked, or one of its examples is unusable.
    #[error("{0}")]
    Data(String),
    /// A thread of the run could not be started, panicked, or ended too early.
    #[error("{0}")]
    Thread(String),
    /// A run did not compute in the dtypes its precision promises.
    #[error("{0}")]
    Precision(String),
    /// A run ended because a step was not finite. The text names the first tensor with NaN or
    /// infinity.
    #[error("{0}")]
    NonFinite(String),
    /// A run broke an invariant, a rule that holds in every training run.
    #[error("{text}")]
    Invariant {
        /// The rule's name: one of [`trainer::Invariant`](crate::trainer::Invariant).
        name: &'static str,
        /// Step, tensor and rule, the likely cause and the remedy, in one line.
        text: String,
    },
    /// Recorded values come from a machine with other properties, so they cannot be compared with
    /// the values of this machine.
    #[error("{0}")]
    NotComparable(String),
    /// The scaler's methods were called out of order, or its scale fell too low.
    #[error("grad scaler: {0}")]
    Scaler(String),
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an [`Error::Config`] with this text.
    pub fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    /// Creates an [`Error::Io`] for the file at `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Returns whether a device or the host ran out of memory. Searches libtorch's message for it,
    /// because the type of the C++ exception is lost at the language boundary.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::In { source, .. } => source.is_out_of_memory(),
            Self::Torch(text) => {
                ["out of memory", "can't allocate memory"].iter().any(|sign| text.contains(sign))
            }
            _ => false,
        }
    }

    /// Adds the path of the module in which the error occurred. An error that already has a path is
    /// returned unchanged, because that path is of the innermost module.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        match self {
            Self::In { .. } => self,
            _ if path.is_empty() => self,
            source => Self::In { path: path.to_owned(), source: Box::new(source) },
        }
    }

    /// Adds the training batch and epoch, both counted from 0, to an error of a model or its loss.
    pub(crate) fn in_batch(self, epoch: i64, batch: i64) -> Self {
        match self {
            Self::In { path, source } => {
                Self::In { path, source: Box::new(source.in_batch(epoch, batch)) }
            }
            Self::Config(text) => Self::Config(format!("{text} (batch {batch} of epoch {epoch})")),
            other => other,
        }
    }

    /// Adds the number of the example that could not be read, counted from 0.
    pub(crate) fn of_example(self, index: i64) -> Self {
        match self {
            Self::Torch(text) => Self::Torch(format!("{text} (example {index} of the data set)")),
            other => Self::Data(format!("example {index} of the data set: {other}")),
        }
    }

    /// Converts an error that a data set returned. Its [`Error::Config`] becomes an
    /// [`Error::Data`], because it is not a mistake in the command line.
    pub(crate) fn of_data_set(self) -> Self {
        match self {
            Self::Config(text) => Self::Data(text),
            other => other,
        }
    }

    /// Drops the C++ stack trace, which follows the message in libtorch's text.
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

/// Joins the first eight names for an error message: `` `a`, `b`, … ``.
pub(crate) fn some_names<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 8;
    let mut names = names.map(|name| format!("`{name}`"));
    let mut shown: Vec<String> = names.by_ref().take(SHOWN).collect();
    shown.extend(names.next().map(|_| "…".to_owned()));
    shown.join(", ")
}
