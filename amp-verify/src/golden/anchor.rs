//! The anchor of a golden (recorded results): the values of the first recording, and how far later
//! recordings may move away from each of them (the budget). Without an anchor, many small accepted
//! changes could add up to a large change. An anchor file is never overwritten, not by insta
//! either. To record a new anchor, delete the file, and give the reason in the commit.

use std::{collections::BTreeMap, fs, path::Path};

use amp_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Agreement, Golden, Moved, comparable::kernels, compare};

/// The budget of a value, as a multiple of the tolerance with which a run is compared with the
/// golden.
const BUDGET: f64 = 2.0;

/// The content of an anchor file: the results of a golden's first recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// The kernels with which peak memory was measured. On a CPU: ATen's kernel set, and whether
    /// the CPU has instructions that multiply f16 numbers. On a GPU: the compute capability. Peak
    /// memory is compared only with a run that uses the same kernels.
    pub capability: Option<String>,
    /// The results that were recorded first, by precision.
    pub runs: BTreeMap<String, Anchored>,
}

/// The results that were recorded first under one precision, each with a budget for later changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anchored {
    /// The validation metric, and by how much later results may differ from it.
    pub accuracy: Value,
    /// The validation loss, and by how much later results may differ from it.
    pub loss: Value,
    /// The largest number of bytes that tensors occupied at one time, and by how much later results
    /// may differ from it.
    pub peak_memory_bytes: Value,
}

/// A value that was recorded first, and by how much later values may differ from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The value that was recorded first.
    pub original: f64,
    /// The largest accepted difference between a later value and `original`.
    pub budget: f64,
}

impl Anchor {
    /// Creates an anchor from the values of a golden (recorded results). The budget of a value is
    /// twice its tolerance, which is computed from `agreement`.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn new(golden: &Golden, agreement: &Agreement) -> Result<Self> {
        let runs = golden.runs.iter().map(|(precision, figures)| {
            let tolerance = agreement.tolerances(golden, precision, figures);
            let value = |name: &str, original: Option<f64>, tolerance: f64| match original {
                Some(original) if original.is_finite() => {
                    Ok(Value { original, budget: BUDGET * tolerance })
                }
                _ => Err(Error::config(format!(
                    "{} under {precision}: the {name} of the last epoch is not a finite number, \
                     so it cannot be recorded",
                    golden.model
                ))),
            };
            let bytes = Some(figures.peak_memory_bytes as f64);
            let anchored = Anchored {
                accuracy: value("metric", figures.accuracy, tolerance.accuracy)?,
                loss: value("loss", figures.loss, tolerance.loss)?,
                peak_memory_bytes: value("peak memory", bytes, tolerance.peak_memory_bytes)?,
            };
            Ok((precision.clone(), anchored))
        });
        Ok(Self { capability: capability(golden), runs: runs.collect::<Result<_>>()? })
    }

    /// Reads the anchor from the file `path`. If there is no such file and `may_write` is true,
    /// creates the anchor from the results in `golden` and writes the file.
    ///
    /// # Errors
    /// When the file is damaged, or is missing and may not be written.
    pub fn load_or_create(
        path: &Path,
        golden: &Golden,
        agreement: &Agreement,
        may_write: bool,
    ) -> Result<Self> {
        let failed = |error| Error::io(path, error);
        if path.exists() {
            let text = fs::read_to_string(path).map_err(failed)?;
            return serde_json::from_str(&text)
                .map_err(|error| Error::config(format!("{}: {error}", path.display())));
        }
        if !may_write {
            return Err(Error::config(format!(
                "{}: the golden has no anchor (its first recording): run the test once with \
                 AMP_ANCHORS=write and commit the file",
                path.display()
            )));
        }
        let anchor = Self::new(golden, agreement)?;
        let text = serde_json::to_string_pretty(&anchor).map_err(|e| failed(e.into()))?;
        amp_core::file::Staged::create(path)?.write(format!("{text}\n").as_bytes())?;
        Ok(anchor)
    }

    /// Returns the values of a new run that differ from the first recording (the anchor) by more
    /// than their budget.
    pub fn exceeded(&self, found: &Golden) -> Vec<Moved> {
        let mut moved = Vec::new();
        for (precision, anchored) in &self.runs {
            let Some(figures) = found.runs.get(precision) else {
                compare::exact(&mut moved, precision, "anchored run", &"present", &"missing");
                continue;
            };
            let mut check = |figure, value: Value, found| {
                let Value { original, budget } = value;
                compare::within(&mut moved, precision, figure, Some(original), found, budget);
            };
            check("accuracy since the anchor", anchored.accuracy, figures.accuracy);
            check("loss since the anchor", anchored.loss, figures.loss);
            if self.capability != capability(found) {
                continue;
            }
            let bytes = Some(figures.peak_memory_bytes as f64);
            check("peak_memory_bytes since the anchor", anchored.peak_memory_bytes, bytes);
        }
        moved
    }
}

fn capability(golden: &Golden) -> Option<String> {
    golden.fingerprint.as_ref().map(kernels)
}
