//! How much recorded results differ between machines that run the same code, and the tolerances
//! that follow from these differences.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::verdict::{standard_deviation, t_quantile};

/// The results of a golden's training runs, repeated on several kinds of machines. The machines
/// differ in their kernels and in their numbers of threads. The tolerances of the golden test are
/// computed from the differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The command and the machine that recorded these results.
    pub recorded_by: String,
    /// The number N of validation examples: an accuracy is a multiple of 1/N.
    pub examples: u32,
    /// The results of the training runs, by the precision's name.
    pub samples: BTreeMap<String, Samples>,
}

/// The results under one precision: one value for each kind of machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The validation metric of each run.
    pub accuracy: Vec<f64>,
    /// The validation loss of each run.
    pub loss: Vec<f64>,
    /// The largest number of bytes that tensors occupied at one time, in each run.
    pub peak_memory_bytes: Vec<f64>,
}

impl Spread {
    /// Parses the text of a spread file, which has the results of several machines.
    ///
    /// # Errors
    /// When the text has another format, or contains the results of fewer than three runs under a
    /// precision.
    pub fn parse(text: &str) -> Result<Self> {
        let spread: Self = serde_json::from_str(text)
            .map_err(|error| Error::config(format!("recorded spread: {error}")))?;
        for (precision, samples) in &spread.samples {
            let Samples { accuracy, loss, peak_memory_bytes } = samples;
            if [accuracy, loss, peak_memory_bytes].iter().any(|figures| figures.len() < 3) {
                return Err(Error::config(format!(
                    "recorded spread: {precision} has fewer than three samples"
                )));
            }
        }
        Ok(spread)
    }

    /// Reads the spread (the differences between machines) that `cargo amp margins` wrote to the
    /// file `path`. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                return Err(Error::io(path, error));
            }
            read => read.map_err(|error| error.to_string()),
        };
        let parsed = text.and_then(|text| Self::parse(&text).map_err(|error| error.to_string()));
        parsed.map(Some).map_err(|cause| {
            Error::config(format!(
                "{}: {cause}: delete the file, or record it again with `cargo amp margins --what \
                 goldens`",
                path.display()
            ))
        })
    }
}

/// The probability that a value is reported as changed although the code has not changed. A golden
/// test with six precisions compares about twenty values, so on another machine about one of fifty
/// runs of such a test gives a false alarm.
const RISK: f64 = 1e-3;

/// Returns the accepted difference between the values of two machines. `samples` has the values of
/// K machines with the standard deviation s. The result is half of the width of the prediction
/// interval for the difference of two further values: t(1 − RISK/2, K − 1)·s·√2, where t is the
/// quantile that `t_quantile` returns.
pub(super) fn tolerance(samples: &[f64]) -> f64 {
    tolerance_of(samples.len(), standard_deviation(samples))
}

/// Returns the accepted difference between two values, computed from `n` values with the standard
/// deviation `s`. The result is infinite if `n` is less than 2.
pub(super) fn tolerance_of(n: usize, s: f64) -> f64 {
    t_quantile(1.0 - RISK / 2.0, n as f64 - 1.0) * s * std::f64::consts::SQRT_2
}
