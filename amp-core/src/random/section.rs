//! Controls which threads may use libtorch's random generators: either one thread that is in a
//! reproducible section, or any number of threads that are not in a section.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// The threads that currently have permission to use the random generators.
struct Holders {
    /// Whether one of the threads is in a section.
    section: bool,
    /// The number of threads with shared permission, which train or use the generators outside of a
    /// section.
    others: usize,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { section: false, others: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { kind: Kind::Nothing, depth: 0 }) };
}

/// The kind of permission that this thread has, and the number of guards through which it has the
/// permission.
#[derive(Clone, Copy)]
struct Held {
    kind: Kind,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    /// The thread is in a section: no other thread uses the generators.
    Section,
    /// Shared permission. Other threads may have shared permission at the same time.
    Place,
    /// The thread works for another thread, which has permission.
    Guest,
}

/// Locks the counts of threads with permission. The lock is used even after a panic, because a
/// panic cannot make the counts inconsistent.
fn holders() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guard of this thread's permission to use the random generators. The permission ends when the
/// last guard is dropped.
#[derive(Debug)]
struct Hold {
    /// A permission belongs to one thread. This field keeps the guard from being sent to another
    /// thread.
    not_send: PhantomData<*const ()>,
}

impl Hold {
    /// Returns a guard of this thread's permission. For the first guard of the thread, `kind` is
    /// the kind of permission, and the caller has waited until this kind is allowed. Further guards
    /// share the kind of the first.
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
/// as two tests of one binary do, each thread takes numbers from the sequence of the other thread,
/// and neither run can be repeated. While the section exists, every other thread waits before it
/// begins a section, [`Trainer::fit`](crate::Trainer::fit) or an [autocast
/// region](crate::precision::AutocastGuard), because libtorch keeps the casts of an autocast region
/// for the whole process. Every other thread also waits before it builds a layer of
/// [`nn`](crate::nn), seeds the generators or changes [numeric
/// switches](crate::hardware::set_numerics). The section begins only when no other thread does any
/// of these things. Without a section no thread waits: several threads can train at the same time,
/// as in PyTorch, but their runs cannot be repeated.
///
/// A section may contain inner sections on the same thread. Each inner section seeds the generators
/// again. Other threads wait until all sections of the thread have ended. Code that uses libtorch's
/// generators directly, such as `Tensor::randn`, does not wait for the sections of other threads:
/// put such code into a section. A thread in a section must not wait for a thread that needs the
/// generators, because both threads would wait forever.
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
/// When libtorch cannot be seeded. Also when this thread is within a `Trainer::fit` or an autocast
/// region that began outside of a section, or is the data loader's thread of such a run. Other
/// threads may then have used the generators already, so the run could not be repeated.
pub fn seeded(seed: u64) -> Result<Section> {
    match HELD.get().kind {
        Kind::Section => {}
        Kind::Nothing => {
            let taken = |holders: &mut Holders| holders.section || holders.others > 0;
            let waited = CHANGED.wait_while(holders(), taken);
            waited.unwrap_or_else(PoisonError::into_inner).section = true;
        }
        Kind::Place | Kind::Guest => {
            return Err(Error::config(
                "random::seeded cannot begin a reproducible section inside Trainer::fit or an \
                 autocast region: call random::seeded before Trainer::fit or the autocast region \
                 begins, on the thread that trains",
            ));
        }
    }
    // If seeding fails with a panic, dropping `section` ends the section.
    let section = Section { _hold: Hold::new(Kind::Section) };
    tch::manual_seed(seed.cast_signed());
    Ok(section)
}

/// A guard of shared permission to use the random generators. While it exists, other threads cannot
/// begin a section.
#[derive(Debug)]
pub(crate) struct Place {
    _hold: Hold,
}

/// Waits until no other thread is in a section. Call this before code that uses or seeds the random
/// generators, or changes numeric switches.
pub(crate) fn place() -> Place {
    if HELD.get().kind == Kind::Nothing {
        let waited = CHANGED.wait_while(holders(), |holders| holders.section);
        waited.unwrap_or_else(PoisonError::into_inner).others += 1;
    }
    Place { _hold: Hold::new(Kind::Place) }
}

/// The permission to use the random generators that a thread passes on to a thread that works for
/// it. The first thread waits for the new thread to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    holds: bool,
}

impl Inherited {
    /// Returns whether the calling thread has permission, for a thread that it starts and waits
    /// for.
    pub(crate) fn current() -> Self {
        Self { holds: HELD.get().kind != Kind::Nothing }
    }

    /// Applies the permission on the new thread. While the returned guard exists, the new thread
    /// does not wait for sections, because the thread that started it has permission already.
    /// Returns `None` if the starting thread has no permission.
    pub(crate) fn enter(self) -> Option<Guest> {
        self.holds.then(|| Guest { _hold: Hold::new(Kind::Guest) })
    }
}

/// The guard of a thread that works for another thread. See [`Inherited::enter`].
#[derive(Debug)]
pub(crate) struct Guest {
    _hold: Hold,
}
