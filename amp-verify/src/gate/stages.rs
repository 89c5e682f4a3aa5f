//! Reports the stages of a long job: each prints its time when it ends.

use std::time::Instant;

use super::{job::Job, pool::LONG};

/// Measures the times of a job's stages.
pub(super) struct Stages<'a> {
    job: &'a Job,
    begun: Instant,
}

impl<'a> Stages<'a> {
    pub(super) fn new(job: &'a Job) -> Self {
        Self { job, begun: Instant::now() }
    }

    /// Ends a stage and begins the next one. Prints a line on standard error if the stage took
    /// long.
    pub(super) fn end(&mut self, stage: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if seconds >= LONG {
            eprintln!("{}: {stage}: {seconds:.0} s", self.job);
        }
        self.begun = Instant::now();
    }
}
