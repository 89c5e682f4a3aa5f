//! Whether libtorch's CUDA half was loaded when the program started (`csrc/cuda_library.cpp`).

use std::ffi::{CStr, c_char, c_int};

use crate::hardware::CudaLibrary;

unsafe extern "C" {
    fn amp_cuda_library(text: *mut *const c_char) -> c_int;
}

/// Makes every program that depends on this crate contain the shim's start-up code, also one that calls
/// nothing but tch.
#[used]
static LINKED: unsafe extern "C" fn(*mut *const c_char) -> c_int = amp_cuda_library;

pub(crate) fn cuda_library() -> CudaLibrary {
    let mut text = std::ptr::null();
    // SAFETY: the shim writes a pointer to a string that ends with a NUL and lives as long as the program.
    let (status, text) = unsafe {
        let status = amp_cuda_library(&mut text);
        (status, CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    match status {
        0 => CudaLibrary::Loaded { path: text },
        1 => CudaLibrary::NoDriver,
        2 => CudaLibrary::NotInstalled { path: text },
        _ => CudaLibrary::Failed { reason: text },
    }
}
