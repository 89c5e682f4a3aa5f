//! Switches autocast on for a device and a dtype, until a guard is dropped. A panic drops the
//! guard, too, so autocast ends in any case.
//!
//! libtorch decides which operators run in the 16-bit dtype, in f32, or in the widest dtype of their
//! inputs. `tests/it/autocast_lists.rs` compares the dtypes of many operators with PyTorch's.
//!
//! libtorch keeps the autocast state and dtype separately for each thread and device type, but all
//! threads of the process share one cache of cast weights. When the outermost autocast region of
//! any thread ends, libtorch clears the cache (ATen/autocast_mode.cpp). If a step of another thread
//! uses a weight once before and once after this, the weight is cast twice, and the sum of its
//! gradients is rounded differently than with a single cast. Therefore an autocast region waits for
//! the [reproducible sections](crate::random::seeded) of other threads, and a reproducible section
//! waits for the autocast regions of other threads.

use std::{cell::RefCell, marker::PhantomData};

use tch::{Device, Kind};

use crate::{
    Error, Result, ffi,
    random::{self, Place},
};

/// Whether autocast is on for a device type on this thread, and in which dtype. This type is for
/// tests and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutocastState {
    /// Whether autocast is on.
    pub enabled: bool,
    /// The dtype to which autocast casts the inputs of operators. `None` if it is not f16, bf16,
    /// f32 or f64.
    pub dtype: Option<Kind>,
}

/// Reads the autocast state of the type of `device` (CPU or CUDA) on this thread.
///
/// # Errors
/// When libtorch cannot read the state.
pub fn autocast_state(device: Device) -> Result<AutocastState> {
    let state = ffi::autocast_state(device.is_cuda())?;
    let dtype = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double]
        .into_iter()
        .find(|kind| ffi::scalar_type(*kind).is_ok_and(|number| number == state.dtype));
    Ok(AutocastState { enabled: state.enabled, dtype })
}

/// An autocast region, which begins when the guard is created and ends when the guard is dropped.
/// Drop nested guards in reverse order. In any other order, the original state is restored only
/// when the last guard is dropped. The guard is not `Send`, because libtorch keeps the autocast
/// state per thread.
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

/// Keeps autocast's 16-bit copies of the weights until this guard is dropped, so that several
/// forward passes cast each weight only once. Drop the guard before the weights change. The guard
/// is not `Send`, because libtorch keeps the autocast state per thread.
#[derive(Debug)]
#[must_use = "the 16-bit copies are kept until the guard is dropped"]
pub(crate) struct KeptCasts {
    _place: Place,
    _thread: PhantomData<*const ()>,
}

impl KeptCasts {
    pub(crate) fn keep() -> Result<Self> {
        let place = random::place();
        // libtorch clears the cache of cast weights when the outermost autocast region ends. This
        // call begins an outer region that encloses all regions that begin before this guard is
        // dropped.
        ffi::autocast_enter()?;
        Ok(Self { _place: place, _thread: PhantomData })
    }
}

impl Drop for KeptCasts {
    fn drop(&mut self) {
        // The call only decrements a counter and clears a map. Its error is ignored, because `drop`
        // cannot return it.
        let _ = ffi::autocast_leave();
    }
}

/// An autocast region that has not ended, and the autocast state before it began.
struct Open {
    number: u64,
    cuda: bool,
    outer: ffi::AutocastState,
}

thread_local! {
    /// The autocast regions of this thread that have not ended, outermost first.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
}

impl AutocastGuard {
    /// Switches autocast on: until the guard is dropped, the operations on `device` that autocast
    /// supports run in the dtype `kind`.
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

    /// Switches autocast off within an outer autocast region, until the guard is dropped.
    ///
    /// # Errors
    /// When libtorch cannot change the state.
    pub fn off(device: Device) -> Result<Self> {
        Self::switch(device, None)
    }

    fn switch(device: Device, kind: Option<Kind>) -> Result<Self> {
        let (place, cuda) = (random::place(), device.is_cuda());
        let outer = ffi::autocast_state(cuda)?;
        let dtype = kind.map(ffi::scalar_type).transpose()?.unwrap_or(outer.dtype);
        ffi::autocast_enter()?;
        // The guard is created before autocast is switched. If switching fails, the guard is
        // dropped, which undoes `autocast_enter` and removes this region from `OPEN`.
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
                // The guard of an inner region still exists, so the autocast state of the inner
                // region stays in force. When that guard is dropped, it restores the state from
                // before this region.
                Some(inner) => {
                    inner.outer = outer;
                    None
                }
                None => Some((cuda, outer)),
            }
        });
        // Both calls only assign thread-local state. Their errors are ignored, because `drop`
        // cannot return them.
        let _ = ffi::autocast_leave();
        if let Some((cuda, outer)) = around {
            let _ = ffi::set_autocast(cuda, outer);
        }
    }
}
