//! Controls which threads may draw random numbers: either one thread that is in a reproducible
//! section, or any number of threads outside of sections.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// The threads that have permission to draw random numbers.
struct Holders {
    /// Whether a thread is in a section.
    section: bool,
    /// The number of threads that train or draw outside a section.
    others: usize,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { section: false, others: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { kind: Kind::Nothing, depth: 0 }) };
}

/// The kind of this thread's permission, and the number of guards that share it.
#[derive(Clone, Copy)]
struct Held {
    kind: Kind,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    /// A section: no other thread draws.
    Section,
    /// Shared permission: other threads may have it at the same time.
    Place,
    /// No permission of its own: the thread works for a thread that has permission.
    Guest,
}

/// Locks the counts of permissions. A panic cannot make them inconsistent.
fn holders() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guard of this thread's permission to draw random numbers. The permission ends when the last
/// guard is dropped.
#[derive(Debug)]
struct Hold {
    /// A permission belongs to one thread, so its guard is not `Send`.
    not_send: PhantomData<*const ()>,
}

impl Hold {
    /// Returns a guard of this thread's permission. The first guard sets the permission's kind;
    /// the caller has waited until that kind is allowed.
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

/// A reproducible section. It begins with [`seeded`] and ends on the same thread when this guard is
/// dropped.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped: bind it, as in `let _section = seeded(42)?;`"]
pub struct Section {
    _hold: Hold,
}

/// Begins a section whose random numbers depend only on `seed`, not on other threads, and seeds
/// libtorch's generators of every device.
///
/// libtorch has one default generator for the whole process. If two threads train at the same time,
/// as two tests of one binary do, each takes numbers from the other's sequence, and neither run can
/// be repeated. While the section exists, every other thread waits before it does one of these
/// things: it begins a section, [`Trainer::fit`](crate::Trainer::fit) or a region of
/// [autocast](crate::precision::AutocastGuard) (libtorch keeps the casts of such a region for the
/// whole process); it builds a layer of [`nn`](crate::nn); it seeds the generators; it changes
/// [numeric switches](crate::hardware::set_numerics). Likewise the section begins only when no
/// other thread does one of these things. Without a section nothing waits: as in PyTorch, several
/// threads can train at the same time, and their runs cannot be repeated.
///
/// A section may contain further sections on the same thread. Each seeds the generators again, and
/// the outer section lasts until all have ended. Code that draws from libtorch directly, such as
/// `Tensor::randn`, does not wait: put it into a section. A thread in a section must not wait for
/// another thread that draws, because both would wait forever.
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
/// When this thread is within a `Trainer::fit` or an autocast region that began outside a section,
/// or works for such a run as its data loader, because other threads may already have disturbed
/// that run. Also when libtorch cannot be seeded.
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
                "a reproducible section cannot begin within Trainer::fit or an autocast region: call \
                 random::seeded before it, on the thread that trains",
            ));
        }
    }
    // If seeding fails with a panic, dropping `section` ends the section.
    let section = Section { _hold: Hold::new(Kind::Section) };
    tch::manual_seed(seed.cast_signed());
    Ok(section)
}

/// A guard: while it exists, other threads cannot begin a section.
#[derive(Debug)]
pub(crate) struct Place {
    _hold: Hold,
}

/// Waits until no other thread is in a section. Call it before code that draws, seeds or changes switches.
pub(crate) fn place() -> Place {
    if HELD.get().kind == Kind::Nothing {
        let waited = CHANGED.wait_while(holders(), |holders| holders.section);
        waited.unwrap_or_else(PoisonError::into_inner).others += 1;
    }
    Place { _hold: Hold::new(Kind::Place) }
}

/// The state that a new thread inherits from the thread that starts it and waits for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    holds: bool,
}

impl Inherited {
    /// Returns the state of the calling thread, for a thread that it starts and waits for.
    pub(crate) fn current() -> Self {
        Self { holds: HELD.get().kind != Kind::Nothing }
    }

    /// Applies the inherited state on the new thread. While the guard exists, the thread does not
    /// wait for sections if its starter would not have to.
    pub(crate) fn enter(self) -> Option<Guest> {
        self.holds.then(|| Guest { _hold: Hold::new(Kind::Guest) })
    }
}

/// See [`Inherited::enter`].
#[derive(Debug)]
pub(crate) struct Guest {
    _hold: Hold,
}
