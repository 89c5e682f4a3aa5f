//! The rows of a run's history. A row contains the values that were logged at one step.

use std::collections::BTreeMap;

use serde_json::Value;

use super::proto::Item;
use crate::log::Histogram;

/// Values as JSON, by the path of their key.
type Values = BTreeMap<Vec<String>, String>;

/// The row to which values are added, until a later step begins.
#[derive(Debug, Default)]
pub(super) struct Row {
    step: u64,
    values: Values,
}

impl Row {
    /// Begins the row of `step` and returns the values of the previous row, if `step` is larger
    /// than the step of the current row. If `step` is not larger, returns `None` and the current
    /// row continues. A value of an earlier step is thus added to the current row, because W&B
    /// requires that steps never decrease.
    pub(super) fn begin(&mut self, step: u64) -> Option<(u64, Values)> {
        if step <= self.step {
            return None;
        }
        let before = self.take();
        self.step = step;
        before
    }

    /// Returns the values of the current row and empties the row. Returns `None` if the row has no
    /// values.
    pub(super) fn take(&mut self) -> Option<(u64, Values)> {
        let values = std::mem::take(&mut self.values);
        (!values.is_empty()).then_some((self.step, values))
    }

    /// Adds a value to the current row. A JSON object is flattened: each value in it is added under
    /// the path of keys that leads to it.
    pub(super) fn put(&mut self, key: &str, value: &Value) {
        self.flatten(vec![key.to_owned()], value);
    }

    pub(super) fn put_number(&mut self, key: &str, value: f64) {
        self.values.insert(vec![key.to_owned()], number(value));
    }

    fn flatten(&mut self, path: Vec<String>, value: &Value) {
        let Value::Object(parts) = value else {
            self.values.insert(path, value.to_string());
            return;
        };
        for (name, part) in parts {
            let path = path.iter().chain([name]).cloned().collect();
            self.flatten(path, part);
        }
    }
}

/// The largest number of buckets in a histogram of W&B (wandb.Histogram.MAX_LENGTH).
const BUCKETS: usize = 512;

/// Returns the counts and the edges of at most 512 buckets. If the histogram has more, neighbouring
/// buckets are merged. There is one more edge than there are counts.
pub(super) fn buckets(histogram: &Histogram) -> (Vec<u64>, Vec<f64>) {
    // The first bucket is left out. It is always empty, and its limit is the left edge of the
    // second bucket.
    let counts = &histogram.counts[1..];
    let together = counts.len().div_ceil(BUCKETS).max(1);
    let edges = histogram.limits.iter().step_by(together).copied();
    let mut edges: Vec<f64> = edges.collect();
    let counts: Vec<u64> = counts.chunks(together).map(|part| part.iter().sum()).collect();
    if edges.len() == counts.len() {
        edges.extend(histogram.limits.last());
    }
    (counts, edges)
}

/// Formats a number as Python's json does, including NaN and infinities.
pub(super) fn number(value: f64) -> String {
    match serde_json::Number::from_f64(value) {
        Some(number) => number.to_string(),
        None if value.is_nan() => "NaN".to_owned(),
        None if value > 0.0 => "Infinity".to_owned(),
        None => "-Infinity".to_owned(),
    }
}

pub(super) fn items(values: impl Iterator<Item = (Vec<String>, String)>) -> Vec<Item> {
    values.map(|(nested_key, value_json)| Item { nested_key, value_json }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that a histogram with more than 512 buckets gets at most 512, and that no value is lost.
    #[test]
    fn neighbours_are_put_together_where_there_are_too_many() {
        for length in [1, 2, 511, 512, 513, 1024, 1025, 1548] {
            let limits: Vec<f64> = (0..=length).map(f64::from).collect();
            let counts: Vec<u64> = (0..=length).map(|at| at as u64).collect();
            let total = counts.iter().sum::<u64>();
            let histogram = Histogram {
                min: 0.0,
                max: f64::from(length),
                count: total,
                sum: 0.0,
                sum_squares: 0.0,
                limits,
                counts,
                not_finite: 0,
            };
            let (counts, edges) = buckets(&histogram);
            assert!(counts.len() <= 512 && edges.len() == counts.len() + 1, "{length}");
            assert_eq!(counts.iter().sum::<u64>(), total, "{length}");
            assert_eq!((edges[0], edges[counts.len()]), (0.0, f64::from(length)));
            for (at, count) in counts.iter().enumerate() {
                // Bucket n contains n values and ends at n.
                let within = edges[at] as u64 + 1..=edges[at + 1] as u64;
                assert_eq!(*count, within.sum::<u64>(), "{length}");
            }
        }
    }

    /// Checks that numbers are formatted as Python's json formats them.
    #[test]
    fn numbers_are_pythons() {
        let numbers = [1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(number);
        assert_eq!(numbers, ["1.5", "NaN", "Infinity", "-Infinity"]);
    }
}
