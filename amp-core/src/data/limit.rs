use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How many batches of a set are used in an epoch, by Lightning's convention for
/// `limit_train_batches`. An integer is a number of batches. A number with a decimal point is a
/// fraction of the set's batches.
///
/// ```
/// use amp_core::data::Limit;
///
/// # fn main() -> amp_core::Result<()> {
/// assert_eq!("10".parse::<Limit>()?.of(25), 10);
/// assert_eq!("0.5".parse::<Limit>()?.of(25), 12);
/// assert_eq!("1.0".parse::<Limit>()?.of(25), 25);
/// assert!("1.5".parse::<Limit>().is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Limit {
    /// At most this number of batches; 0 means no batch.
    Batches(i64),
    /// This fraction of the set's batches, from 0.0 to 1.0. The number of batches is rounded down.
    Fraction(f64),
}

impl Default for Limit {
    /// Uses all batches.
    fn default() -> Self {
        Self::Fraction(1.0)
    }
}

impl Limit {
    /// Returns the number of batches to use out of `batches`.
    pub fn of(self, batches: i64) -> i64 {
        match self {
            Self::Batches(most) => batches.min(most),
            Self::Fraction(part) => (batches as f64 * part) as i64,
        }
    }

    /// Returns an error if the limit is a negative number of batches, or a fraction that is not
    /// from 0 to 1. `name` is the name of the option in the error.
    ///
    /// # Errors
    /// When the limit is out of range.
    pub fn checked(self, name: &str) -> Result<Self> {
        let fits = match self {
            Self::Batches(most) => most >= 0,
            Self::Fraction(part) => (0.0..=1.0).contains(&part),
        };
        if fits {
            return Ok(self);
        }
        Err(Error::config(format!(
            "{name} is {self}: give a number of batches, as in 100, or a fraction from 0.0 to 1.0"
        )))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batches(most) => write!(f, "{most}"),
            Self::Fraction(part) => write!(f, "{part:?}"),
        }
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let count = text.parse().ok().map(Self::Batches);
        let limit = count.or_else(|| text.parse().ok().map(Self::Fraction));
        limit
            .ok_or_else(|| {
                Error::config(format!(
                    "`{text}` is not a limit: give a number of batches, as in 100, or a fraction from \
                     0.0 to 1.0"
                ))
            })?
            .checked("the limit")
    }
}
