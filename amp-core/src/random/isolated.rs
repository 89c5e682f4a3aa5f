//! Code that draws the same random numbers in each call, and does not affect those of other code.

use super::section::alone;
use crate::{Result, ffi::CpuRandom};

/// Runs `body` while libtorch's CPU generator has the seed `seed`, and restores the generator's
/// state afterwards. The random numbers that `body` draws on the CPU depend only on `seed`, and the
/// random numbers that are drawn later are those that would be drawn without the call. Generators
/// of other devices are not seeded.
///
/// Other threads wait as for a [reproducible section](super::seeded), which `body` may begin. If
/// this thread is within a `Trainer::fit` or an autocast region outside of a section, other threads
/// that train do not wait, and draw from the same generator.
///
/// ```no_run,standalone_crate
/// use amp_core::{random, tch::{Device, Kind, Tensor}};
///
/// # fn main() -> amp_core::Result<()> {
/// let noise = || Tensor::f_randn([3], (Kind::Float, Device::Cpu));
/// assert_eq!(random::isolated(5, noise)??, random::isolated(5, noise)??);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When libtorch's generator cannot be read or seeded.
pub fn isolated<T>(seed: u64, body: impl FnOnce() -> T) -> Result<T> {
    let _alone = alone();
    with_cpu_seed(seed, body)
}

/// Seeds libtorch's CPU generator, runs `body` and restores the generator's state. The caller holds
/// the lock of the generators.
pub(super) fn with_cpu_seed<T>(seed: u64, body: impl FnOnce() -> T) -> Result<T> {
    /// A guard that restores the state of the generator when the guard is dropped, also after a
    /// panic.
    struct Kept(CpuRandom);

    impl Drop for Kept {
        fn drop(&mut self) {
            // Restoring a state that was read from the same generator does not fail, so the result
            // is ignored.
            let _ = self.0.restore();
        }
    }

    let _kept = Kept(CpuRandom::read()?);
    CpuRandom::seed(seed)?;
    Ok(body())
}
