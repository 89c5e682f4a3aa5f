//! The stages of a job whose whole takes long: each prints its time when it ends.

use std::time::Instant;

use super::{job::Job, pool::LONG};

/// The time of a job's stages.
pub(super) struct Stages<'a> {
    job: &'a Job,
    begun: Instant,
}

impl<'a> Stages<'a> {
    pub(super) fn new(job: &'a Job) -> Self {
        Self { job, begun: Instant::now() }
    }

    /// Ends a stage, and prints a line on standard error if it took long. The next one begins.
    pub(super) fn end(&mut self, stage: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if seconds >= LONG {
            eprintln!("{}: {stage}: {seconds:.0} s", self.job);
        }
        self.begun = Instant::now();
    }
}
