use std::time::Instant;

use super::{Action, Callback};
use crate::{Hook, Result, ffi, log::LogOptions, module::StepAccess, precision::StepOutcome};

/// Logs the training time of each epoch as `epoch_seconds`. Also logs the median and the 95th
/// percentile of the time per batch, as `batch_ms` and `batch_ms_p95`. The times include data
/// loading and callbacks.
///
/// On CUDA the time of a batch is the time in which the host enqueues the work of the batch. Only
/// the time of the epoch includes the wait for the device.
#[derive(Debug, Default)]
pub struct SpeedBenchmark {
    epoch: Option<Instant>,
    batch: Option<Instant>,
    milliseconds: Vec<f64>,
}

impl SpeedBenchmark {
    /// Creates a benchmark that has no measurements yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Callback for SpeedBenchmark {
    fn name(&self) -> String {
        "SpeedBenchmark".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_epoch_start(&mut self, _: &mut Hook<'_>) -> Result<()> {
        let now = Instant::now();
        (self.epoch, self.batch) = (Some(now), Some(now));
        self.milliseconds.clear();
        Ok(())
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        let now = Instant::now();
        if let Some(before) = self.batch.replace(now) {
            self.milliseconds.push((now - before).as_secs_f64() * 1e3);
        }
        Ok(Vec::new())
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        // If the run was resumed within the epoch, the start of the epoch was not measured, and
        // nothing is logged.
        let Some(start) = self.epoch.take() else { return Ok(()) };
        if let tch::Device::Cuda(index) = hook.device {
            let _between = ffi::between_captures();
            tch::Cuda::synchronize(index as i64);
        }
        let seconds = start.elapsed().as_secs_f64();
        hook.log_number("epoch_seconds", seconds, LogOptions::ON_EPOCH)?;
        self.milliseconds.sort_by(f64::total_cmp);
        for (name, quantile) in [("batch_ms", 0.5), ("batch_ms_p95", 0.95)] {
            if let Some(value) = nearest_rank(&self.milliseconds, quantile) {
                hook.log_number(name, value, LogOptions::ON_EPOCH)?;
            }
        }
        Ok(())
    }
}

/// Returns the quantile by the nearest-rank method: the smallest value in `sorted` such that at
/// least the fraction `quantile` of all values are at most this value.
fn nearest_rank(sorted: &[f64], quantile: f64) -> Option<f64> {
    let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::nearest_rank;

    /// Checks the median and the 95th percentile of ten values, of one value and of no values.
    #[test]
    fn ranks_are_those_of_the_definition() {
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(nearest_rank(&ten, 0.5), Some(5.0));
        assert_eq!(nearest_rank(&ten, 0.95), Some(10.0));
        assert_eq!(nearest_rank(&ten[..1], 0.5), Some(1.0));
        assert_eq!(nearest_rank(&[], 0.5), None);
    }
}
