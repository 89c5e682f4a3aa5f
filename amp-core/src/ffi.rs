//! The only unsafe code: calls into the C++ shim (`csrc/`).
//!
//! Every call goes through [`checked!`], which turns a C++ exception into an [`Error`].

#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_double, c_int, c_void},
    marker::PhantomData,
};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result};

/// Options of an Adam step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) eps: c_double,
    pub(crate) weight_decay: c_double,
    /// Whether the decay is AdamW's; 0 or 1, as are the other integers here.
    pub(crate) decoupled: c_int,
}

/// Options of an SGD step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: c_double,
    pub(crate) momentum: c_double,
    pub(crate) dampening: c_double,
    pub(crate) weight_decay: c_double,
    pub(crate) nesterov: c_int,
    pub(crate) first_step: c_int,
}

/// Options of an RMSprop step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmspropStep {
    pub(crate) lr: c_double,
    pub(crate) alpha: c_double,
    pub(crate) eps: c_double,
    pub(crate) weight_decay: c_double,
    pub(crate) momentum: c_double,
    pub(crate) centered: c_int,
}

/// Options of a Lion step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LionStep {
    pub(crate) lr: c_double,
    pub(crate) beta1: c_double,
    pub(crate) beta2: c_double,
    pub(crate) weight_decay: c_double,
}

#[repr(C)]
struct AmpCudaDevice {
    name: [c_char; 256],
    major: c_int,
    minor: c_int,
    multiprocessors: c_int,
    driver: c_int,
    memory: usize,
}

type Handle = *const C_tensor;

unsafe extern "C" {
    fn amp_take_error(buffer: *mut u8, capacity: usize) -> usize;
    fn amp_autocast_get(cuda: c_int, on: *mut c_int, dtype: *mut c_int, cache: *mut c_int)
    -> c_int;
    fn amp_autocast_set(cuda: c_int, on: c_int, dtype: c_int, cache: c_int) -> c_int;
    fn amp_autocast_enter(depth: *mut c_int) -> c_int;
    fn amp_autocast_leave(depth: *mut c_int) -> c_int;
    fn amp_unscale(grads: *const Handle, count: usize, found_inf: Handle, inv: Handle) -> c_int;
    fn amp_check_finite(tensors: *const Handle, count: usize, found_inf: Handle) -> c_int;
    fn amp_foreach_norm(
        tensors: *const Handle,
        count: usize,
        ord: c_double,
        as_f32: c_int,
        norms: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_foreach_mul(tensors: *const Handle, count: usize, factor: Handle) -> c_int;
    fn amp_foreach_add(tensors: *const Handle, count: usize, value: c_double) -> c_int;
    fn amp_foreach_clamp(tensors: *const Handle, count: usize, low: f64, high: f64) -> c_int;
    fn amp_fused_adam(lists: *const *const Handle, count: usize, step: *const AdamStep) -> c_int;
    fn amp_foreach_adam(lists: *const *const Handle, count: usize, step: *const AdamStep) -> c_int;
    fn amp_fused_sgd(lists: *const *const Handle, count: usize, step: *const SgdStep) -> c_int;
    fn amp_foreach_sgd(lists: *const *const Handle, count: usize, step: *const SgdStep) -> c_int;
    fn amp_foreach_rmsprop(
        lists: *const *const Handle,
        count: usize,
        step: *const RmspropStep,
    ) -> c_int;
    fn amp_foreach_lion(lists: *const *const Handle, count: usize, step: *const LionStep) -> c_int;
    fn amp_clear_grads(tensors: *const Handle, count: usize) -> c_int;
    fn amp_identity(tensor: Handle) -> *const c_void;
    fn amp_surroundings(input: Handle, out: *mut *mut c_void) -> c_int;
    fn amp_surroundings_drop(surroundings: *mut c_void);
    fn amp_checkpoint(
        surroundings: *mut c_void,
        state: *mut c_void,
        run: unsafe extern "C" fn(*mut c_void, Handle) -> *mut C_tensor,
        drop: unsafe extern "C" fn(*mut c_void),
        input: Handle,
        output: Handle,
    ) -> c_int;
    fn amp_checkpoint_failed(text: *const u8, length: usize);
    fn amp_random_get(cuda: c_int, out: *mut *mut C_tensor) -> c_int;
    fn amp_random_set(cuda: c_int, state: Handle) -> c_int;
    fn amp_event_record(cuda: c_int, out: *mut *mut c_void) -> c_int;
    fn amp_event_elapsed(
        from: *const c_void,
        to: *const c_void,
        milliseconds: *mut c_double,
    ) -> c_int;
    fn amp_event_drop(event: *mut c_void);
    fn amp_load_cuda(loaded: *mut c_int) -> c_int;
    fn amp_host_memory_start(out: *mut *mut c_void) -> c_int;
    fn amp_host_memory_read(guard: *const c_void, live: *mut i64, peak: *mut i64);
    fn amp_host_memory_stop(guard: *mut c_void) -> c_int;
    fn amp_cuda_memory(
        index: c_int,
        allocated: *mut i64,
        peak: *mut i64,
        reserved_peak: *mut i64,
    ) -> c_int;
    fn amp_cuda_memory_reset_peak(index: c_int) -> c_int;
    fn amp_cuda_empty_cache() -> c_int;
    fn amp_set_numerics(tf32: c_int, deterministic: c_int) -> c_int;
    fn amp_get_numerics(tf32: *mut c_int, deterministic: *mut c_int) -> c_int;
    fn amp_cpu_capability(out: *mut c_char, capacity: usize) -> c_int;
    fn amp_cuda_device(index: c_int, out: *mut AmpCudaDevice) -> c_int;
    fn amp_cuda_free_memory(index: c_int, bytes: *mut usize) -> c_int;
    fn amp_side_stream(index: c_int, id: *mut i64) -> c_int;
    fn amp_copy_start(
        index: c_int,
        stream: i64,
        host: *const Handle,
        out: *mut *mut C_tensor,
        event: *mut *mut c_void,
    ) -> c_int;
    fn amp_copy_arrive(event: *mut c_void, tensors: *const Handle) -> c_int;
    fn amp_copy_drop(event: *mut c_void);
    fn amp_debug_info_current(out: *mut *mut c_void) -> c_int;
    fn amp_debug_info_enter(info: *const c_void) -> c_int;
    fn amp_debug_info_drop(info: *mut c_void);
}

/// Calls a shim function; a nonzero status becomes the exception's text.
macro_rules! checked {
    ($call:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the shim reads the pointers only during the call, every pointer comes from a
        // live reference or slice of the stated length, and it lets no exception out.
        let status = unsafe { $call($($argument),*) };
        if status == 0 { Ok(()) } else { Err(take_error()) }
    }};
}

fn take_error() -> Error {
    let mut buffer = vec![0_u8; 4096];
    loop {
        // SAFETY: the shim writes at most `len` bytes into the buffer.
        let length = unsafe { amp_take_error(buffer.as_mut_ptr(), buffer.len()) };
        let fits = length <= buffer.len();
        buffer.resize(length, 0);
        if fits {
            return Error::torch(&String::from_utf8_lossy(&buffer));
        }
    }
}

fn handles<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Handle> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// The autocast state of one device type on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AutocastState {
    pub(crate) enabled: bool,
    pub(crate) dtype: c_int,
    pub(crate) cache: bool,
}

/// libtorch's number for the dtypes autocast knows (c10/core/ScalarType.h).
pub(crate) fn scalar_type(kind: Kind) -> Result<c_int> {
    match kind {
        Kind::Half => Ok(5),
        Kind::Float => Ok(6),
        Kind::Double => Ok(7),
        Kind::BFloat16 => Ok(15),
        other => Err(Error::config(format!("{other:?} is not a floating dtype"))),
    }
}

pub(crate) fn autocast_state(cuda: bool) -> Result<AutocastState> {
    let (mut enabled, mut dtype, mut cache) = (0, 0, 0);
    checked!(amp_autocast_get(c_int::from(cuda), &mut enabled, &mut dtype, &mut cache))?;
    Ok(AutocastState { enabled: enabled != 0, dtype, cache: cache != 0 })
}

pub(crate) fn set_autocast(cuda: bool, state: AutocastState) -> Result<()> {
    checked!(amp_autocast_set(
        c_int::from(cuda),
        c_int::from(state.enabled),
        state.dtype,
        c_int::from(state.cache),
    ))
}

pub(crate) fn autocast_enter() -> Result<i32> {
    let mut depth = 0;
    checked!(amp_autocast_enter(&mut depth))?;
    Ok(depth)
}

pub(crate) fn autocast_leave() -> Result<i32> {
    let mut depth = 0;
    checked!(amp_autocast_leave(&mut depth))?;
    Ok(depth)
}

/// Multiplies `grads` by `inv_scale` in place; `found_inf` becomes 1 when one is not finite.
pub(crate) fn unscale(grads: &[Tensor], found_inf: &Tensor, inv_scale: &Tensor) -> Result<()> {
    let grads = handles(grads);
    checked!(amp_unscale(grads.as_ptr(), grads.len(), found_inf.as_ptr(), inv_scale.as_ptr()))
}

/// Sets `found_inf`, an f32 scalar on the CPU, to 1 when an element of the CPU tensors is not
/// finite.
pub(crate) fn check_finite(tensors: &[Tensor], found_inf: &Tensor) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_check_finite(tensors.as_ptr(), tensors.len(), found_inf.as_ptr()))
}

/// The norm of each tensor, on its device.
pub(crate) fn foreach_norm(tensors: &[Tensor], ord: f64, as_f32: bool) -> Result<Vec<Tensor>> {
    let inputs = handles(tensors);
    let mut norms = vec![std::ptr::null_mut(); inputs.len()];
    checked!(amp_foreach_norm(
        inputs.as_ptr(),
        inputs.len(),
        ord,
        c_int::from(as_f32),
        norms.as_mut_ptr(),
    ))?;
    // SAFETY: on success each entry is a new tensor that nobody else owns.
    Ok(norms.into_iter().map(|norm| unsafe { Tensor::from_ptr(norm) }).collect())
}

pub(crate) fn foreach_mul(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_foreach_mul(tensors.as_ptr(), tensors.len(), factor.as_ptr()))
}

pub(crate) fn foreach_add(tensors: &[Tensor], value: f64) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_foreach_add(tensors.as_ptr(), tensors.len(), value))
}

pub(crate) fn foreach_clamp(tensors: &[Tensor], low: f64, high: f64) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_foreach_clamp(tensors.as_ptr(), tensors.len(), low, high))
}

/// Calls `step` with the handles of lists of one length.
fn with_lists(
    lists: &[&[Tensor]],
    step: impl FnOnce(*const *const Handle, usize) -> Result<()>,
) -> Result<()> {
    let count = lists.first().map_or(0, |list| list.len());
    let lists: Vec<Vec<Handle>> = lists
        .iter()
        .map(|list| {
            assert_eq!(list.len(), count, "one gradient and one state per parameter");
            handles(*list)
        })
        .collect();
    let lists: Vec<*const Handle> = lists.iter().map(|list| list.as_ptr()).collect();
    step(lists.as_ptr(), count)
}

/// Steps on parameters, gradients, exp_avgs, exp_avg_sqs and steps, which are counted up.
pub(crate) fn adam(lists: [&[Tensor]; 5], step: &AdamStep, fused: bool) -> Result<()> {
    with_lists(&lists, |lists, count| match fused {
        true => checked!(amp_fused_adam(lists, count, &raw const *step)),
        false => checked!(amp_foreach_adam(lists, count, &raw const *step)),
    })
}

/// Steps on parameters, gradients and, with momentum, its buffers.
pub(crate) fn sgd(lists: &[&[Tensor]], step: &SgdStep, fused: bool) -> Result<()> {
    assert_eq!(lists.len(), if step.momentum == 0.0 { 2 } else { 3 }, "buffers go with momentum");
    with_lists(lists, |lists, count| match fused {
        true => checked!(amp_fused_sgd(lists, count, &raw const *step)),
        false => checked!(amp_foreach_sgd(lists, count, &raw const *step)),
    })
}

/// Steps on parameters, gradients, square_avgs and, in this order, the momentum's buffers and
/// the grad_avgs where the options want them.
pub(crate) fn rmsprop(lists: &[&[Tensor]], step: &RmspropStep) -> Result<()> {
    let wanted = 3 + usize::from(step.momentum > 0.0) + usize::from(step.centered != 0);
    assert_eq!(lists.len(), wanted, "state goes with the options");
    with_lists(lists, |lists, count| checked!(amp_foreach_rmsprop(lists, count, &raw const *step)))
}

/// Steps on parameters, gradients and exp_avgs.
pub(crate) fn lion(lists: [&[Tensor]; 3], step: &LionStep) -> Result<()> {
    with_lists(&lists, |lists, count| checked!(amp_foreach_lion(lists, count, &raw const *step)))
}

/// Drops gradients (PyTorch's `set_to_none=True`).
pub(crate) fn clear_grads<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_clear_grads(tensors.as_ptr(), tensors.len()))
}

/// A number that two handles share exactly when they are the same tensor.
pub(crate) fn identity(tensor: &Tensor) -> usize {
    // SAFETY: the handle is live; only an address comes back, which is never followed.
    unsafe { amp_identity(tensor.as_ptr()) as usize }
}

/// Computes a module's output from its input.
type Run = dyn Fn(&Tensor) -> Result<Tensor>;

/// A checkpointed module as C++ keeps it.
struct Recompute {
    run: Box<Run>,
}

/// Runs `first` on `input` without keeping activations, and hooks its output into the graph so
/// that `again` runs for the backward pass, in the same autocast state and with the same random
/// numbers. Nothing that `again` owns may be shared with the caller but through an `Arc`: for
/// CUDA it runs and is freed on libtorch's threads.
pub(crate) fn checkpoint(
    input: &Tensor,
    first: impl FnOnce() -> Result<Tensor>,
    again: impl Fn(&Tensor) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let mut surroundings = std::ptr::null_mut();
    checked!(amp_surroundings(input.as_ptr(), &mut surroundings))?;
    // Detached, so that a module that returns its input does not hand out the input's own handle.
    let output = match tch::no_grad(|| Ok(first()?.f_detach()?)) {
        Ok(output) => output,
        Err(error) => {
            // SAFETY: made above and given to nobody else.
            unsafe { amp_surroundings_drop(surroundings) };
            return Err(error);
        }
    };
    let state = Box::into_raw(Box::new(Recompute { run: Box::new(again) })).cast();
    checked!(amp_checkpoint(
        surroundings,
        state,
        recompute,
        drop_recompute,
        input.as_ptr(),
        output.as_ptr(),
    ))?;
    Ok(output)
}

/// Runs a checkpointed module for C++; null when it fails or panics, since neither may cross.
unsafe extern "C" fn recompute(state: *mut c_void, input: Handle) -> *mut C_tensor {
    // SAFETY: C++ passes the state it was given, which lives until `drop_recompute`, and a tensor
    // that lives during the call; the clone is a handle of our own.
    let (state, input) =
        unsafe { (&*state.cast::<Recompute>(), Tensor::clone_from_ptr(input.cast_mut())) };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (state.run)(&input)));
    let failure = match outcome {
        Ok(Ok(mut output)) => {
            let shared = output.as_mut_ptr();
            // SAFETY: a live tensor; the copy is C++'s to free, ours goes with `output`.
            return unsafe { torch_sys::at_shallow_clone(shared) };
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the module panicked".to_owned(),
    };
    // SAFETY: C++ copies the text before it returns.
    unsafe { amp_checkpoint_failed(failure.as_ptr(), failure.len()) };
    std::ptr::null_mut()
}

unsafe extern "C" fn drop_recompute(state: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `checkpoint`; C++ calls this once.
    drop(unsafe { Box::from_raw(state.cast::<Recompute>()) });
}

/// A device's index as the shim takes it.
fn index(device: Device) -> c_int {
    match device {
        Device::Cuda(index) => index as c_int,
        _ => -1,
    }
}

/// The state of a device's default generator, a byte tensor on the CPU.
pub(crate) fn random_state(device: Device) -> Result<Tensor> {
    let mut state = std::ptr::null_mut();
    checked!(amp_random_get(index(device), &mut state))?;
    // SAFETY: on success a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(state) })
}

pub(crate) fn set_random_state(device: Device, state: &Tensor) -> Result<()> {
    checked!(amp_random_set(index(device), state.as_ptr()))
}

/// A point in the work of a CUDA device's current stream.
pub(crate) struct CudaEvent {
    event: *mut c_void,
}

impl CudaEvent {
    pub(crate) fn record(device: Device) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        checked!(amp_event_record(index(device), &mut event))?;
        Ok(Self { event })
    }

    /// Seconds from this point to a later one; waits for it.
    pub(crate) fn seconds_to(&self, later: &Self) -> Result<f64> {
        let mut milliseconds = 0.0;
        checked!(amp_event_elapsed(self.event, later.event, &mut milliseconds))?;
        Ok(milliseconds / 1e3)
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: made by `amp_event_record` and dropped once.
        unsafe { amp_event_drop(self.event) };
    }
}

/// Whether libtorch's CUDA half could be loaded.
pub(crate) fn load_cuda() -> Result<bool> {
    let mut loaded = 0;
    checked!(amp_load_cuda(&mut loaded))?;
    Ok(loaded != 0)
}

/// Counts the CPU tensor bytes allocated on this thread while it lives.
pub(crate) struct HostMemory {
    guard: *mut c_void,
    /// The guard belongs to the thread that started it.
    _not_send: PhantomData<*const ()>,
}

impl HostMemory {
    pub(crate) fn start() -> Result<Self> {
        let mut guard = std::ptr::null_mut();
        checked!(amp_host_memory_start(&mut guard))?;
        Ok(Self { guard, _not_send: PhantomData })
    }

    /// Live and peak bytes since the start.
    pub(crate) fn read(&self) -> (i64, i64) {
        let (mut live, mut peak) = (0, 0);
        // SAFETY: the guard lives as long as self.
        unsafe { amp_host_memory_read(self.guard, &mut live, &mut peak) };
        (live, peak)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // A failed pop leaves a counter that nobody reads; there is nobody to tell in a drop.
        let _ = checked!(amp_host_memory_stop(self.guard));
    }
}

/// Bytes allocated now, their peak, and the peak reserved by the caching allocator.
pub(crate) fn cuda_memory(index: usize) -> Result<(i64, i64, i64)> {
    let (mut allocated, mut peak, mut reserved) = (0, 0, 0);
    checked!(amp_cuda_memory(index as c_int, &mut allocated, &mut peak, &mut reserved))?;
    Ok((allocated, peak, reserved))
}

pub(crate) fn cuda_memory_reset_peak(index: usize) -> Result<()> {
    checked!(amp_cuda_memory_reset_peak(index as c_int))
}

pub(crate) fn cuda_empty_cache() -> Result<()> {
    checked!(amp_cuda_empty_cache())
}

pub(crate) fn set_numerics(tf32: bool, deterministic: bool) -> Result<()> {
    checked!(amp_set_numerics(c_int::from(tf32), c_int::from(deterministic)))
}

/// TF32 and deterministic algorithms.
pub(crate) fn numerics() -> Result<(bool, bool)> {
    let (mut tf32, mut deterministic) = (0, 0);
    checked!(amp_get_numerics(&mut tf32, &mut deterministic))?;
    Ok((tf32 != 0, deterministic != 0))
}

/// The kernel set ATen chose, as `AVX2`.
pub(crate) fn cpu_capability() -> Result<String> {
    let mut name = [0; 32];
    checked!(amp_cpu_capability(name.as_mut_ptr(), name.len()))?;
    Ok(text(&name))
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) struct CudaDevice {
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    pub(crate) multiprocessors: i32,
    pub(crate) driver: i32,
    pub(crate) memory: u64,
}

pub(crate) fn cuda_device(index: usize) -> Result<CudaDevice> {
    let mut out = AmpCudaDevice {
        name: [0; 256],
        major: 0,
        minor: 0,
        multiprocessors: 0,
        driver: 0,
        memory: 0,
    };
    checked!(amp_cuda_device(index as c_int, &mut out))?;
    Ok(CudaDevice {
        name: text(&out.name),
        capability: (out.major, out.minor),
        multiprocessors: out.multiprocessors,
        driver: out.driver,
        memory: out.memory as u64,
    })
}

/// Bytes the driver has free on a device.
pub(crate) fn cuda_free_memory(index: usize) -> Result<u64> {
    let mut bytes = 0;
    checked!(amp_cuda_free_memory(index as c_int, &mut bytes))?;
    Ok(bytes as u64)
}

/// A stream of a CUDA device beside the one that is computed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideStream {
    index: c_int,
    id: i64,
}

impl SideStream {
    pub(crate) fn new(index: usize) -> Result<Self> {
        let (index, mut id) = (index as c_int, 0);
        checked!(amp_side_stream(index, &mut id))?;
        Ok(Self { index, id })
    }

    /// Starts copying two tensors of the host to the device, by way of pinned memory.
    pub(crate) fn copy(self, tensors: [&Tensor; 2]) -> Result<DeviceCopy> {
        let tensors = tensors.map(|tensor| tensor.as_ptr());
        let (mut out, mut event) = ([std::ptr::null_mut(); 2], std::ptr::null_mut());
        checked!(amp_copy_start(
            self.index,
            self.id,
            tensors.as_ptr().cast(),
            out.as_mut_ptr(),
            &mut event,
        ))?;
        // SAFETY: on success each is a new tensor that nobody else owns.
        let tensors = out.map(|tensor| unsafe { Tensor::from_ptr(tensor) });
        Ok(DeviceCopy { event, tensors: Some(tensors) })
    }
}

/// Two tensors on their way to a device.
#[derive(Debug)]
pub(crate) struct DeviceCopy {
    event: *mut c_void,
    /// Gone once they have arrived.
    tensors: Option<[Tensor; 2]>,
}

// SAFETY: the event is the device's; any thread may wait for it and free it.
unsafe impl Send for DeviceCopy {}

impl DeviceCopy {
    /// The tensors, for use on the stream that this thread computes on: it will wait for the
    /// copy, this thread does not.
    pub(crate) fn arrive(mut self) -> Result<[Tensor; 2]> {
        let tensors = self.tensors.take().expect("`arrive` is the only taker, and takes self");
        let handles = [tensors[0].as_ptr(), tensors[1].as_ptr()];
        checked!(amp_copy_arrive(self.event, handles.as_ptr().cast()))?;
        Ok(tensors)
    }
}

impl Drop for DeviceCopy {
    fn drop(&mut self) {
        // SAFETY: made by `SideStream::copy` and freed here alone.
        unsafe { amp_copy_drop(self.event) };
    }
}

/// What a thread reports to, the memory meter among others, for another thread that works for it.
pub(crate) struct DebugInfo(*mut c_void);

// SAFETY: a counted pointer to what C++ only reads, and whose meters count atomically.
unsafe impl Send for DebugInfo {}

impl DebugInfo {
    pub(crate) fn current() -> Result<Self> {
        let mut info = std::ptr::null_mut();
        checked!(amp_debug_info_current(&mut info))?;
        Ok(Self(info))
    }

    /// Lets this thread report to the same.
    pub(crate) fn enter(&self) -> Result<()> {
        checked!(amp_debug_info_enter(self.0))
    }
}

impl Drop for DebugInfo {
    fn drop(&mut self) {
        // SAFETY: made by `current` and freed here alone.
        unsafe { amp_debug_info_drop(self.0) };
    }
}
