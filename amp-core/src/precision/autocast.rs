//! Autocast with a device and a dtype. It is a guard, so it also ends after a panic.
//!
//! libtorch keeps autocast's state and dtype per thread and device type, but it has one cache of
//! cast weights for the whole process. When the outermost region of any thread ends, libtorch
//! clears the cache (ATen/autocast_mode.cpp). If another thread's step uses a weight twice, the
//! weight would then be cast twice, and its gradients would be added up in another rounding.
//! Therefore a region waits for the [reproducible sections](crate::random::seeded) of other
//! threads, and such a section waits for the regions of other threads.

use std::{cell::RefCell, marker::PhantomData};

use tch::{Device, Kind};

use crate::{
    Error, Result, ffi,
    random::{self, Place},
};

/// The autocast state of a device type on this thread, for tests and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutocastState {
    /// Whether eligible operations are cast.
    pub enabled: bool,
    /// The dtype to which they are cast, if it is f16 or bf16.
    pub dtype: Option<Kind>,
}

/// Reads the autocast state of this device type on this thread.
///
/// # Errors
/// When libtorch fails.
pub fn autocast_state(device: Device) -> Result<AutocastState> {
    let state = ffi::autocast_state(device.is_cuda())?;
    let dtype = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double]
        .into_iter()
        .find(|kind| ffi::scalar_type(*kind).is_ok_and(|number| number == state.dtype));
    Ok(AutocastState { enabled: state.enabled, dtype })
}

/// An autocast region. It begins when the guard is created and ends when the guard is dropped. Drop
/// guards in reverse order; in another order, the original state is restored when the last guard is
/// dropped. The guard is not `Send`, because the state belongs to the thread.
///
/// ```
/// use amp_core::{precision::AutocastGuard, tch::{Device, Kind, Tensor}};
///
/// let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
/// let guard = AutocastGuard::enter(Device::Cpu, Kind::BFloat16)?;
/// assert_eq!(x.matmul(&x).kind(), Kind::BFloat16);
/// drop(guard);
/// assert_eq!(x.matmul(&x).kind(), Kind::Float);
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the region ends when the guard is dropped"]
pub struct AutocastGuard {
    number: u64,
    _place: Place,
    _thread: PhantomData<*const ()>,
}

/// Keeps the cast weights of autocast regions until it is dropped, so that several forward passes
/// with the same weights cast them once. Drop it before the weights change. It is not `Send`,
/// because the state belongs to the thread.
#[derive(Debug)]
#[must_use = "the casts are kept until this is dropped"]
pub(crate) struct KeptCasts {
    _place: Place,
    _thread: PhantomData<*const ()>,
}

impl KeptCasts {
    pub(crate) fn keep() -> Result<Self> {
        let place = random::place();
        // libtorch clears the cache only when the outermost level of nesting ends. This call opens
        // a level around all regions that follow.
        ffi::autocast_enter()?;
        Ok(Self { _place: place, _thread: PhantomData })
    }
}

impl Drop for KeptCasts {
    fn drop(&mut self) {
        // The call only decrements a counter and clears a map; `drop` cannot return its error.
        let _ = ffi::autocast_leave();
    }
}

/// An open region, and the state before it.
struct Open {
    number: u64,
    cuda: bool,
    outer: ffi::AutocastState,
}

thread_local! {
    /// This thread's open regions, outermost first.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
}

impl AutocastGuard {
    /// Casts eligible operations on `device` to `kind`.
    ///
    /// # Errors
    /// When `kind` is neither f16 nor bf16.
    pub fn enter(device: Device, kind: Kind) -> Result<Self> {
        if !matches!(kind, Kind::Half | Kind::BFloat16) {
            return Err(Error::config(format!(
                "autocast runs in float16 or bfloat16, not {}",
                super::dtype_name(kind)
            )));
        }
        Self::switch(device, Some(kind))
    }

    /// Switches autocast off inside an outer region.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn off(device: Device) -> Result<Self> {
        Self::switch(device, None)
    }

    fn switch(device: Device, kind: Option<Kind>) -> Result<Self> {
        let (place, cuda) = (random::place(), device.is_cuda());
        let outer = ffi::autocast_state(cuda)?;
        let dtype = kind.map(ffi::scalar_type).transpose()?.unwrap_or(outer.dtype);
        ffi::autocast_enter()?;
        // The guard is created before the switch, so that an error leaves the nesting unchanged.
        let guard = Self {
            number: OPEN.with_borrow_mut(|open| {
                let number = open.last().map_or(0, |last| last.number + 1);
                open.push(Open { number, cuda, outer });
                number
            }),
            _place: place,
            _thread: PhantomData,
        };
        ffi::set_autocast(cuda, ffi::AutocastState { enabled: kind.is_some(), dtype, ..outer })?;
        Ok(guard)
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        let around = OPEN.with_borrow_mut(|open| {
            let at = open.iter().position(|region| region.number == self.number)?;
            let Open { cuda, outer, .. } = open.remove(at);
            match open[at..].iter_mut().find(|region| region.cuda == cuda) {
                // This guard is dropped before an inner region. The inner region continues, and
                // when it ends, it restores the state from before this region.
                Some(inner) => {
                    inner.outer = outer;
                    None
                }
                None => Some((cuda, outer)),
            }
        });
        // The calls only assign thread-local state; `drop` cannot return their errors.
        let _ = ffi::autocast_leave();
        if let Some((cuda, outer)) = around {
            let _ = ffi::set_autocast(cuda, outer);
        }
    }
}
