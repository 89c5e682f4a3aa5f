//! A reader-writer lock for libtorch's random generators. A thread in a reproducible section holds
//! the lock exclusively. Threads that use the generators outside of a section share the lock.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result, ffi};

/// The threads that currently hold the lock.
struct Holders {
    /// Whether a thread is in a section and holds the lock exclusively.
    section: bool,
    /// The number of threads that share the lock: they train or use the generators outside of a
    /// section.
    others: usize,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { section: false, others: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { kind: Kind::Nothing, depth: 0 }) };
}

/// How this thread holds the lock, and how many guards it has.
#[derive(Clone, Copy)]
struct Held {
    kind: Kind,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The thread does not hold the lock.
    Nothing,
    /// The thread is in a section and holds the lock exclusively.
    Section,
    /// The thread shares the lock with other threads that are not in a section.
    Place,
    /// The thread uses the lock of the thread that started it. See [`Inherited`].
    Guest,
}

/// Locks the mutex of [`HOLDERS`], even if a thread has panicked while holding it: a panic cannot
/// make the fields inconsistent.
fn holders() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guard through which this thread holds the lock. When the thread's last guard is dropped, the
/// lock is released.
#[derive(Debug)]
pub(super) struct Hold {
    /// The thread that takes the lock must also release it. This field keeps the guard from being
    /// sent to another thread.
    not_send: PhantomData<*const ()>,
}

impl Hold {
    /// Returns a new guard of this thread. For the thread's first guard, `kind` says how the caller
    /// has taken the lock. For further guards `kind` is ignored: they have the kind of the first.
    fn new(kind: Kind) -> Self {
        let held = HELD.get();
        let kind = if held.depth == 0 { kind } else { held.kind };
        HELD.set(Held { kind, depth: held.depth + 1 });
        Self { not_send: PhantomData }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Held { kind, depth } = HELD.get();
        if depth > 1 {
            HELD.set(Held { kind, depth: depth - 1 });
            return;
        }
        HELD.set(Held { kind: Kind::Nothing, depth: 0 });
        let mut holders = holders();
        match kind {
            Kind::Section => holders.section = false,
            Kind::Place => holders.others -= 1,
            Kind::Guest | Kind::Nothing => return,
        }
        drop(holders);
        CHANGED.notify_all();
    }
}

/// A reproducible section. It begins with [`seeded`]. It ends when this guard is dropped, on the
/// same thread.
#[derive(Debug)]
#[must_use = "the section ends when the guard is dropped: bind it, as in `let _section = seeded(42)?;`"]
pub struct Section {
    _hold: Hold,
}

/// Begins a section in which random numbers depend only on `seed` and not on other threads. Seeds
/// libtorch's generators of every device.
///
/// libtorch has one default generator for the whole process. If two threads train at the same time,
/// as two tests of one binary do, each takes numbers from the sequence of the other, and neither
/// run can be repeated. While a section exists, every other thread waits before it
///
/// - begins a section or [`Trainer::fit`](crate::Trainer::fit),
/// - begins an [autocast region](crate::precision::AutocastGuard), because libtorch keeps one cache
///   of cast weights for the whole process,
/// - builds a layer of [`nn`](crate::nn),
/// - seeds the generators, or
/// - changes [numeric switches](crate::hardware::set_numerics).
///
/// The section begins only when no other thread is doing any of these things. Without a section no
/// thread waits: several threads can train at the same time, as in PyTorch, but their runs cannot
/// be repeated.
///
/// A section may contain inner sections on the same thread. Each inner section seeds the generators
/// again. Other threads wait until all sections of the thread have ended. Two kinds of code do not
/// wait even if another thread is in a section, and so take numbers from the section's sequence:
/// code that uses libtorch's generators directly, such as `Tensor::randn`, and, outside of
/// `Trainer::fit` and of autocast regions, the forward pass of a layer that draws random numbers,
/// such as `Dropout`. Put such code into a section. A thread in a section must not wait for a
/// thread that needs the generators, because both threads would wait forever.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{Linear, LinearConfig},
///     random,
/// };
///
/// fn weight() -> amp_core::Result<f64> {
///     let _section = random::seeded(42)?;
///     let layer = Linear::new(LinearConfig::new(2, 2))?;
///     Ok(amp_core::nn::parameters(&layer)[0].tensor.double_value(&[0, 0]))
/// }
///
/// // Two threads that run at the same time get the same weight.
/// let other = std::thread::spawn(|| weight().map_err(|error| error.to_string()));
/// let own = weight()?;
/// assert_eq!(other.join().expect("the thread ends"), Ok(own));
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When libtorch cannot be seeded. When this thread is a data loader's thread of a `Trainer::fit`.
/// When this thread is within a `Trainer::fit` or an autocast region that began outside of a
/// section, because other threads may already have used the generators, and the run could not be
/// repeated.
pub fn seeded(seed: u64) -> Result<Section> {
    if matches!(HELD.get().kind, Kind::Place | Kind::Guest) {
        return Err(Error::config(
            "random::seeded cannot begin a reproducible section inside Trainer::fit or an \
             autocast region: call random::seeded before Trainer::fit or the autocast region \
             begins, on the thread that trains",
        ));
    }
    // If seeding fails, dropping `section` ends the section.
    let section = Section { _hold: alone() };
    ffi::seed_all_random(seed)?;
    Ok(section)
}

/// Waits until no other thread holds the lock, and takes it exclusively. Does not wait if this
/// thread already holds the lock.
pub(super) fn alone() -> Hold {
    if HELD.get().kind == Kind::Nothing {
        let taken = |holders: &mut Holders| holders.section || holders.others > 0;
        let waited = CHANGED.wait_while(holders(), taken);
        waited.unwrap_or_else(PoisonError::into_inner).section = true;
    }
    Hold::new(Kind::Section)
}

/// A guard of a thread that shares the lock: several threads may have such a guard at the same
/// time. While such a guard exists, no other thread can begin a section.
#[derive(Debug)]
pub(crate) struct Place {
    _hold: Hold,
}

/// Waits until no other thread is in a section, and takes the lock in shared mode. Does not wait if
/// this thread already holds the lock. Call this before code that uses or seeds the random
/// generators, or changes numeric switches.
pub(crate) fn place() -> Place {
    if HELD.get().kind == Kind::Nothing {
        let waited = CHANGED.wait_while(holders(), |holders| holders.section);
        waited.unwrap_or_else(PoisonError::into_inner).others += 1;
    }
    Place { _hold: Hold::new(Kind::Place) }
}

/// Returns whether no other thread holds the lock. This thread must hold it.
pub(super) fn is_alone() -> bool {
    let holders = holders();
    holders.section || holders.others <= 1
}

/// Lets a new thread use the random generators under the lock of the thread that starts it. The
/// starting thread holds the lock until the new thread has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    /// Whether the starting thread holds the lock.
    holds: bool,
}

impl Inherited {
    /// Records whether the calling thread holds the lock, for a thread that it starts.
    pub(crate) fn current() -> Self {
        Self { holds: HELD.get().kind != Kind::Nothing }
    }

    /// Returns a guard for the new thread, or `None` if the starting thread does not hold the lock.
    /// While the guard exists, [`place`] does not wait in the new thread. Without the guard, the
    /// new thread could wait for the starting thread's section to end, while the starting thread
    /// waits for the new thread to end.
    pub(crate) fn enter(self) -> Option<Guest> {
        self.holds.then(|| Guest { _hold: Hold::new(Kind::Guest) })
    }
}

/// The guard of a thread that uses the lock of the thread that started it. See
/// [`Inherited::enter`].
#[derive(Debug)]
pub(crate) struct Guest {
    _hold: Hold,
}
