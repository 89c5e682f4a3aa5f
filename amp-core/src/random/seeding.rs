//! Detects code that seeds the random generator of a CUDA device.

use tch::Device;

use super::{RandomState, section::is_alone};
use crate::Result;

/// Watches calls of the same code, and finds out whether the code seeds the random generator of a
/// CUDA device. A CUDA graph cannot contain such code: while a graph is captured, seeding fails if
/// the new seed differs from the generator's seed, and has no effect if it is the same.
#[derive(Debug, Default)]
pub(crate) struct Seeding {
    /// Whether calls are watched at the moment. A call must not be watched during a capture.
    pub(crate) is_watched: bool,
    /// Whether a watched call has drawn random numbers.
    draws: bool,
    /// Whether a watched call has seeded the generator.
    seeds: bool,
}

impl Seeding {
    /// Returns whether a watched call has seeded the generator.
    pub(crate) fn was_found(&self) -> bool {
        self.seeds
    }

    /// Calls `body`. Compares the generator of `device` before and after the call.
    ///
    /// The state of a CUDA generator is its seed and its offset. Each draw of random numbers
    /// increases the offset, and seeding sets the offset to 0. So the call has seeded the generator
    /// if the seed has changed or the offset has become smaller. If each call begins with the same
    /// seed, the offset after each call is the same. Therefore an equal offset also counts as
    /// seeding if an earlier call has drawn random numbers. A call that draws numbers only
    /// sometimes then counts as seeding too. Such a call cannot be captured either.
    ///
    /// All threads of the process share the generator. While another thread trains as well, that
    /// thread may have caused a change, so the call is not judged.
    pub(crate) fn watch<T>(&mut self, device: Device, body: impl FnOnce() -> T) -> Result<T> {
        if !self.is_watched {
            return Ok(body());
        }
        let was_alone = is_alone();
        let before = RandomState::seed_and_offset(device)?;
        let value = body();
        let after = RandomState::seed_and_offset(device)?;
        if let (Some((seed, start)), Some((seed_now, end))) = (before, after)
            && was_alone
            && is_alone()
        {
            self.seeds |= seed_now != seed || end < start || (end == start && self.draws);
            self.draws |= end != start;
        }
        Ok(value)
    }
}
