//! Controls which code may draw random numbers: one section with exclusive use of the process's generators,
//! or all other code.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// The holds of this process's threads.
struct Holders {
    /// Whether a thread is in a section.
    section: bool,
    /// Threads that train or draw outside a section.
    others: usize,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { section: false, others: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { kind: Kind::Nothing, depth: 0 }) };
}

/// The hold of this thread, and the number of its guards.
#[derive(Clone, Copy)]
struct Held {
    kind: Kind,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    /// The section: no other thread draws.
    Section,
    /// A shared hold, like those of other threads.
    Place,
    /// No hold of its own: the thread works for a thread that has one.
    Guest,
}

/// Locks the holds. A panic cannot leave them in an inconsistent state.
fn holders() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guard of this thread's hold. When the last guard is dropped, the hold ends.
#[derive(Debug)]
struct Hold {
    /// A hold belongs to its thread.
    not_send: PhantomData<*const ()>,
}

impl Hold {
    /// Another guard of this thread's hold, or else a new hold of `kind`, for which the caller has
    /// waited.
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

/// A reproducible section, from [`seeded`] until this guard is dropped, on the thread that began it.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped: bind it, as in `let _section = seeded(42)?;`"]
pub struct Section {
    _hold: Hold,
}

/// Begins a section whose random numbers depend only on `seed`, not on other threads, and seeds
/// libtorch's generators of every device.
///
/// libtorch has one default generator for the whole process: two threads that train at the same time, as
/// two tests of one binary do, take numbers from each other's sequence, so that neither run can be
/// repeated. While the section lives, every other thread waits before it begins a section, enters
/// [`Trainer::fit`](crate::Trainer::fit) or a region of [autocast](crate::precision::AutocastGuard), whose casts
/// libtorch keeps for the whole process, builds a layer of [`nn`](crate::nn), seeds the generators or
/// changes [numeric switches](crate::hardware::set_numerics). Likewise the section begins only when no
/// other thread is doing one of these. Without a section nothing waits: several threads train at the same
/// time, as in PyTorch, and their runs cannot be repeated.
///
/// On its own thread a section may contain others, each of which seeds again; it ends with the last of
/// them. Code that draws from libtorch directly, such as `Tensor::randn`, does not wait: put it into a
/// section. A thread in a section must not wait for another thread that is about to draw: both would wait
/// forever.
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
/// // The same weight on each of two threads that run at once.
/// let other = std::thread::spawn(|| weight().map_err(|error| error.to_string()));
/// let own = weight()?;
/// assert_eq!(other.join().expect("the thread ends"), Ok(own));
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When this thread is within a `Trainer::fit` or a region of autocast that began outside a section, or works for such a
/// run as its data loader, because others may already disturb that run; when libtorch cannot be seeded.
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
    // From here on an error ends the section.
    let section = Section { _hold: Hold::new(Kind::Section) };
    tch::manual_seed(seed.cast_signed());
    Ok(section)
}

/// Prevents other threads from beginning a section while it lives.
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

/// The state that a thread inherits from the thread that starts it and waits for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    holds: bool,
}

impl Inherited {
    /// The state of the calling thread, for a thread that it will wait for.
    pub(crate) fn current() -> Self {
        Self { holds: HELD.get().kind != Kind::Nothing }
    }

    /// Called on the new thread: while the guard lives, the thread waits for no section if its starter did
    /// not have to.
    pub(crate) fn enter(self) -> Option<Guest> {
        self.holds.then(|| Guest { _hold: Hold::new(Kind::Guest) })
    }
}

/// See [`Inherited::enter`].
#[derive(Debug)]
pub(crate) struct Guest {
    _hold: Hold,
}
