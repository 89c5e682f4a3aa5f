//! The time limit of a benchmark.

use std::time::Duration;

/// Runs parts of a benchmark as long as there is time.
pub struct Clock<'a> {
    limit: Option<Duration>,
    /// The time since the beginning.
    elapsed: Box<dyn Fn() -> Duration + 'a>,
    longest: Duration,
    left_out: Vec<String>,
}

impl<'a> Clock<'a> {
    /// `elapsed` returns the time since the beginning; without a limit everything runs.
    pub fn new(limit: Option<Duration>, elapsed: impl Fn() -> Duration + 'a) -> Self {
        let (longest, left_out) = (Duration::ZERO, Vec::new());
        Self { limit, elapsed: Box::new(elapsed), longest, left_out }
    }

    /// Runs the part called `name`, if a part as long as the longest so far would end in time. Otherwise
    /// notes that it was left out.
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

    /// The workloads that were left out, in one line; `None` if there are none.
    pub fn note(&self) -> Option<String> {
        let limit = self.limit.filter(|_| !self.left_out.is_empty())?;
        let names = self.left_out.join(", ");
        Some(format!("left out because of the time limit of {} s: {names}", limit.as_secs()))
    }
}
