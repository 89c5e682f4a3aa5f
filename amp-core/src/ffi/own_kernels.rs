//! Selects the kernels of layers and losses: this library's or libtorch's (`csrc/own_kernels.cpp`).

use std::ffi::c_int;

unsafe extern "C" {
    fn amp_own_kernels() -> c_int;
    fn amp_own_kernels_set(own: c_int);
}

/// Returns whether layers and losses on this thread use this library's kernels wherever such
/// kernels exist.
pub(crate) fn own_kernels() -> bool {
    // SAFETY: the function only reads a thread-local number.
    unsafe { amp_own_kernels() != 0 }
}

/// Sets whether layers and losses on this thread use this library's kernels wherever such kernels
/// exist.
pub(crate) fn set_own_kernels(own: bool) {
    // SAFETY: the function only writes a thread-local number.
    unsafe { amp_own_kernels_set(c_int::from(own)) }
}
