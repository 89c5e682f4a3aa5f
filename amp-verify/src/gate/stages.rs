//! Reports the progress of a long job of the gate. When a stage of the job ends, prints how long
//! the stage took.

use std::time::Instant;

use super::{job::Job, pool::LONG};

/// Measures how long each stage of a job of the gate takes.
pub(super) struct Stages<'a> {
    job: &'a Job,
    begun: Instant,
}

impl<'a> Stages<'a> {
    pub(super) fn new(job: &'a Job) -> Self {
        Self { job, begun: Instant::now() }
    }

    /// Ends the stage named `stage` and begins the next stage. If the stage took long, prints a
    /// line on standard error.
    pub(super) fn end(&mut self, stage: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if seconds >= LONG {
            eprintln!("{}: {stage}: {seconds:.0} s", self.job);
        }
        self.begun = Instant::now();
    }
}
