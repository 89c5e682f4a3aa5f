//! The results of a job of the gate.

use amp_core::{
    Hyperparameters, hardware::Fingerprint, precision::Precision, probe::Observed, tch::Kind,
};
use serde::{Deserialize, Serialize};

use super::{
    checked::Checked,
    identity, path,
    reason::{Failure, Reason},
};

/// The results of a job of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The metric in the last validation; null if it is not finite or if the model does not log it.
    pub metric: Option<f64>,
    /// The loss in the last validation; null if it is not finite or if the model does not log it.
    pub loss: Option<f64>,
    /// The number of applied optimizer steps.
    pub applied_steps: u64,
    /// The number of skipped optimizer steps.
    pub skipped_steps: u64,
    /// The loss scale at the end of the run.
    pub final_scale: Option<f64>,
    /// The largest number of bytes that tensors occupied at one time. Tensors that the gate itself
    /// keeps for its comparisons are included.
    pub peak_memory_bytes: u64,
    /// How many bytes of `peak_memory_bytes` are copies of the data sets in the precision's dtype.
    /// On CUDA and under the mixed precisions they are not counted, and the value is 0.
    #[serde(default)]
    pub data_bytes: u64,
    /// The dtypes of matrix products, loss and weights, as observed in the first step.
    pub observed: Observed,
    /// The number of examples in the validation set.
    pub examples: i64,
    /// A digest of the initial weights, the order of examples and the validation set. It must equal
    /// the digest of the 32-true run with the same seed, except if the precision stores batches in
    /// another dtype.
    pub pairing: String,
    /// A digest of the initial weights and the validation set. It is compared in place of `pairing`
    /// if the precision stores batches in another dtype than 32-true.
    pub start: String,
    /// Some values of the first batches, in the dtype in which the run stores them. They show the
    /// order of the examples.
    pub first_values: Vec<f64>,
    /// The fraction of the validation examples that are also training examples; null under
    /// 32-true.
    pub overlap: Option<f64>,
    /// The values of all hyperparameters of the model.
    pub hyperparameters: Hyperparameters,
    /// The name of the data set.
    pub data: String,
    /// The number of examples in a batch.
    pub batch_size: i64,
    /// The description of the machine and its settings; null if the job did not train.
    pub fingerprint: Option<Fingerprint>,
    /// The relative error of one f32 matrix product on the device, which shows whether TF32 is
    /// used; null for other precisions than 32-true.
    pub product_error: Option<f64>,
    /// The comparison of the first steps with 32-true; null unless the task is `Conformance`.
    pub conformance: Option<Vec<Checked>>,
    /// The checks of the steps of an observed run; null unless the task is `Path`.
    pub path: Option<path::PathReport>,
    /// The failures of the model that the job found.
    pub failures: Vec<Failure>,
    /// Whether the time limit ended the job before all rules of the gate were judged.
    #[serde(default)]
    pub ended: bool,
    /// The duration of the job in seconds.
    pub seconds: f64,
}

impl Outcome {
    /// Returns whether this run began with the same weights, examples and validation set as `base`,
    /// the run under 32-true with the same seed. If the precision stores batches in another dtype,
    /// the examples may differ by the rounding to this dtype.
    pub(super) fn is_paired(&self, base: &Self, precision: Precision) -> bool {
        let storage = precision.storage();
        self.pairing == base.pairing
            || storage != Kind::Float
                && self.start == base.start
                && identity::are_near(&base.first_values, &self.first_values, storage)
    }

    /// Returns the outcome of a job that the time limit ended before anything was judged.
    pub(super) fn ended() -> Self {
        let crashed = Failure::new(Reason::Crashed, "");
        Self { ended: true, failures: Vec::new(), ..Self::failed(crashed) }
    }

    /// Creates the outcome of a job that failed before it had a result.
    pub fn failed(failure: Failure) -> Self {
        Self {
            metric: None,
            loss: None,
            applied_steps: 0,
            skipped_steps: 0,
            final_scale: None,
            peak_memory_bytes: 0,
            data_bytes: 0,
            observed: Observed::default(),
            examples: 0,
            pairing: String::new(),
            start: String::new(),
            first_values: Vec::new(),
            overlap: None,
            hyperparameters: Hyperparameters::new(),
            data: String::new(),
            batch_size: 0,
            fingerprint: None,
            product_error: None,
            conformance: None,
            path: None,
            failures: vec![failure],
            ended: false,
            seconds: 0.0,
        }
    }
}
