//! The time limit of a benchmark.

use std::time::Duration;

/// Runs the measurements of a benchmark one after another. Skips a measurement that might not end
/// within the time limit.
pub struct Clock<'a> {
    limit: Option<Duration>,
    /// Returns the time since the benchmark began.
    elapsed: Box<dyn Fn() -> Duration + 'a>,
    longest: Duration,
    left_out: Vec<String>,
}

impl<'a> Clock<'a> {
    /// Creates a clock with this time limit. `elapsed` returns the time since the benchmark began.
    /// Without a limit every measurement runs.
    pub fn new(limit: Option<Duration>, elapsed: impl Fn() -> Duration + 'a) -> Self {
        let (longest, left_out) = (Duration::ZERO, Vec::new());
        Self { limit, elapsed: Box::new(elapsed), longest, left_out }
    }

    /// Runs the measurement `part`, or skips it and stores its `name` for [`Clock::note`]. Skips it
    /// if the remaining time is shorter than the longest measurement so far.
    pub fn run<T>(&mut self, name: &str, part: impl FnOnce() -> T) -> Option<T> {
        let begun = (self.elapsed)();
        if self.limit.is_some_and(|limit| begun + self.longest > limit) {
            self.left_out.push(name.to_owned());
            return None;
        }
        let done = part();
        self.longest = self.longest.max((self.elapsed)().saturating_sub(begun));
        Some(done)
    }

    /// Returns one line that lists the skipped measurements. Returns `None` if no measurement was
    /// skipped.
    pub fn note(&self) -> Option<String> {
        let limit = self.limit.filter(|_| !self.left_out.is_empty())?;
        let names = self.left_out.join(", ");
        Some(format!("not measured because of the time limit of {} s: {names}", limit.as_secs()))
    }
}
