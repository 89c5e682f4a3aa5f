//! The error type of this crate. C++ exceptions become errors with the text of the exception.

use std::path::PathBuf;

/// The errors that occur while a model is built, trained or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation. The text is the message of the C++ exception, without its
    /// stack trace.
    #[error("libtorch: {0}")]
    Torch(String),
    /// An operation inside a module of the model failed.
    #[error("in `{path}`: {source}")]
    In {
        /// The module's dotted path, as in `model.0`.
        path: String,
        /// The error that occurred in the module.
        source: Box<Error>,
    },
    /// The caller requested something impossible. The text says what to do instead. A command that
    /// fails with this error ends with exit code 2.
    #[error("{0}")]
    Config(String),
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The reason that the operating system gave.
        source: std::io::Error,
    },
    /// A data set could not be read. Its code panicked, or it returned an example that cannot be
    /// used.
    #[error("{0}")]
    Data(String),
    /// A thread of the run could not be started, panicked, or ended too early.
    #[error("{0}")]
    Thread(String),
    /// A run computed in other dtypes than its precision prescribes.
    #[error("{0}")]
    Precision(String),
    /// A run ended because the loss or a gradient of a step was not finite. The text names the
    /// first tensor with NaN or infinity.
    #[error("{0}")]
    NonFinite(String),
    /// A run violated an invariant of training, a rule that holds for every model.
    #[error("{text}")]
    Invariant {
        /// The invariant's name, as in [`trainer::Invariant`](crate::trainer::Invariant).
        name: &'static str,
        /// One line with the step, the tensor, the violated rule, the likely cause and the remedy.
        text: String,
    },
    /// The results of this run cannot be compared with recorded ones, because there are none, or
    /// because they come from another machine or other settings than this run.
    #[error("{0}")]
    NotComparable(String),
    /// The methods of the gradient scaler were called out of order, or the loss scale fell too low.
    #[error("grad scaler: {0}")]
    Scaler(String),
}

/// A result whose error is an [`Error`](enum@Error) unless another type is given.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an [`Error::Config`] with the given text.
    pub fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    /// Creates an [`Error::Io`] for the file at `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Returns whether a device or the host ran out of memory. Searches the text of libtorch's
    /// message, because the type of the C++ exception does not reach Rust.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::In { source, .. } => source.is_out_of_memory(),
            Self::Torch(text) => {
                ["out of memory", "can't allocate memory"].iter().any(|sign| text.contains(sign))
            }
            _ => false,
        }
    }

    /// Adds the path of the module in which the error occurred. If the error already has a path, it
    /// is returned unchanged, because that path names the innermost module.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        match self {
            Self::In { .. } => self,
            _ if path.is_empty() => self,
            source => Self::In { path: path.to_owned(), source: Box::new(source) },
        }
    }

    /// Adds the name of the run in which the error occurred, for a command that makes several runs.
    #[must_use]
    pub fn within(self, run: &str) -> Self {
        Self::In { path: run.to_owned(), source: Box::new(self) }
    }

    /// Adds a hint to the text of the error if libtorch complains about the dtypes of tensors.
    pub(crate) fn with_dtype_hint(self, hint: impl FnOnce(Complaint) -> Option<String>) -> Self {
        match self {
            Self::Torch(text) => {
                let hint = Complaint::in_text(&text).and_then(hint).unwrap_or_default();
                Self::Torch(text + &hint)
            }
            other => other,
        }
    }

    /// Adds the place of a batch, such as `batch 3 of epoch 0`, to the text of an error in a model
    /// or its loss. CUDA reports errors late, perhaps while a later batch runs, so such an error
    /// gets no place.
    pub(crate) fn in_batch(self, place: &str) -> Self {
        match self {
            Self::In { path, source } => {
                Self::In { path, source: Box::new(source.in_batch(place)) }
            }
            Self::Config(text) => Self::Config(format!("{text} ({place})")),
            Self::Torch(text) if !text.contains("CUDA error") => {
                Self::Torch(format!("{text} ({place})"))
            }
            other => other,
        }
    }

    /// Adds the index of the example that could not be read, counted from 0, to the text of the
    /// error.
    pub(crate) fn of_example(self, index: i64) -> Self {
        match self {
            Self::Torch(text) => Self::Torch(format!("{text} (example {index} of the data set)")),
            other => Self::Data(format!("example {index} of the data set: {other}")),
        }
    }

    /// Converts an error that a data set returned. An [`Error::Config`] of a data set becomes an
    /// [`Error::Data`], because the cause is the data and not the command line.
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

/// What libtorch's message says about the dtypes of an operation's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// The tensors have different dtypes.
    Mixed,
    /// The operation does not exist for the dtype.
    Unsupported,
    /// The tensor does not contain ids.
    NoIds,
}

impl Complaint {
    fn in_text(text: &str) -> Option<Self> {
        const SIGNS: [(&str, Complaint); 7] = [
            ("same dtype", Complaint::Mixed),
            ("should be the same", Complaint::Mixed),
            ("expected scalar type", Complaint::Mixed),
            ("mixed dtype", Complaint::Mixed),
            ("not implemented for '", Complaint::Unsupported),
            ("can't be cast to the desired output type", Complaint::Unsupported),
            ("one of the following scalar types: Long, Int", Complaint::NoIds),
        ];
        SIGNS.iter().find(|(sign, _)| text.contains(sign)).map(|(_, complaint)| *complaint)
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
