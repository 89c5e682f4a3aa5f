//! Who may draw: sections that have the process's generators alone, and everything else.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{Error, Result};

/// What the threads of this process hold.
struct Holders {
    /// Whether a thread is in a section.
    section: bool,
    /// Threads that train or draw outside of a section.
    others: usize,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { section: false, others: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { kind: Kind::Nothing, depth: 0 }) };
}

/// What this thread holds, and how many guards say so.
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
    /// A place among the others.
    Place,
    /// Nothing of its own: the thread works for one that holds something.
    Guest,
}

/// A lock of the holders. A panic cannot leave them half-changed.
fn holders() -> MutexGuard<'static, Holders> {
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One hold of this thread; the last one to be dropped gives back what the thread holds.
#[derive(Debug)]
struct Hold {
    /// A hold is its thread's.
    not_send: PhantomData<*const ()>,
}

impl Hold {
    /// One more of what this thread holds, or else `kind`, for which the caller has waited.
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

/// A reproducible section, from [`seeded`] until this is dropped, on the thread that began it.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped: bind it, as in `let _section = seeded(42)?;`"]
pub struct Section {
    _hold: Hold,
}

/// Begins a section whose random numbers follow from `seed` alone, whatever other threads do, and
/// seeds libtorch's generators of every device.
///
/// libtorch has one default generator for the whole process: two threads that train at once, as
/// two tests of one binary do, take numbers from each other's sequence, so that neither run can be
/// repeated. While the section lives, every other thread that wants to begin one, enters
/// [`Trainer::fit`](crate::Trainer::fit), builds a layer of [`nn`](crate::nn), seeds the generators
/// or changes [numeric switches](crate::hardware::set_numerics) waits. In turn the section begins
/// when no other thread is in one of these. Without a section nothing waits: runs of several
/// threads go on at the same time, as they do in PyTorch, and cannot be repeated.
///
/// On its own thread a section may contain others, each of which seeds anew; it ends with the last
/// of them. What draws from libtorch directly, such as `Tensor::randn`, waits for nothing: put it
/// into a section. A thread in a section must not wait for another thread that wants to draw: both
/// would wait forever.
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
/// When this thread is within a `Trainer::fit` that began outside of a section, which others may
/// disturb already, or works for such a run as its data loader; when libtorch cannot be seeded.
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
                "a reproducible section cannot begin within Trainer::fit: call random::seeded \
                 before it, on the thread that trains",
            ));
        }
    }
    // From here on an error gives the section back.
    let section = Section { _hold: Hold::new(Kind::Section) };
    tch::manual_seed(seed.cast_signed());
    Ok(section)
}

/// Keeps sections of other threads from beginning while it lives.
#[derive(Debug)]
pub(crate) struct Place {
    _hold: Hold,
}

/// Waits until no other thread is in a section. Take it for what draws, seeds or changes switches.
pub(crate) fn place() -> Place {
    if HELD.get().kind == Kind::Nothing {
        let waited = CHANGED.wait_while(holders(), |holders| holders.section);
        waited.unwrap_or_else(PoisonError::into_inner).others += 1;
    }
    Place { _hold: Hold::new(Kind::Place) }
}

/// What a thread takes over from the one that starts it and whose work it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    holds: bool,
}

impl Inherited {
    /// Of the calling thread, for one that it will wait for.
    pub(crate) fn current() -> Self {
        Self { holds: HELD.get().kind != Kind::Nothing }
    }

    /// On the new thread: it waits for no section while the guard lives, if its starter had not to.
    pub(crate) fn enter(self) -> Option<Guest> {
        self.holds.then(|| Guest { _hold: Hold::new(Kind::Guest) })
    }
}

/// See [`Inherited::enter`].
#[derive(Debug)]
pub(crate) struct Guest {
    _hold: Hold,
}
