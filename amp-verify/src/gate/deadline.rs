//! The time at which a job of the gate must stop, so that the gate keeps its time limit.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use amp_core::{Error, Result};

/// The reason that reports give if the time limit ended the gate before a rule was judged.
pub(super) const OVER: &str = "the time limit was reached";

/// The time at which a job of the gate must end. Clones share a flag that is set when
/// [`check`](Self::check) returns an error.
#[derive(Debug, Clone, Default)]
pub(super) struct Deadline {
    at: Option<Instant>,
    has_ended: Rc<Cell<bool>>,
}

impl Deadline {
    /// Creates a deadline at the time `time` after this call. `None` means that the job may take
    /// any time.
    pub(super) fn within(time: Option<Duration>) -> Self {
        // If the moment is too far in the future for an `Instant`, there is no deadline.
        let at = time.and_then(|time| Instant::now().checked_add(time));
        Self { at, has_ended: Rc::default() }
    }

    /// Returns an error if the deadline has passed.
    pub(super) fn check(&self) -> Result<()> {
        if self.at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        self.has_ended.set(true);
        Err(Error::config(OVER))
    }

    /// Returns whether the job was ended because its time was over.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_ends_when_its_time_is_over() {
        let over = Deadline::within(Some(Duration::ZERO));
        assert!(!over.has_ended(), "nothing was checked");
        let shared = over.clone();
        assert!(over.check().is_err_and(|error| error.to_string() == OVER));
        assert!(shared.has_ended());
        for time in [None, Some(Duration::MAX), Some(Duration::from_secs(3600))] {
            let open = Deadline::within(time);
            assert!(open.check().is_ok() && !open.has_ended());
        }
    }
}
