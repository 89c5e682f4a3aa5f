//! Whether libtorch's CUDA library was loaded when the program started (`csrc/cuda_library.cpp`).

use std::{
    ffi::{CStr, c_char, c_int},
    fmt,
};

use serde::{Deserialize, Serialize};

unsafe extern "C" {
    fn amp_cuda_library(text: *mut *const c_char) -> c_int;
}

/// Links the shim's start-up code into every program that depends on this crate, even if the
/// program only calls tch.
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

/// The result of loading libtorch's CUDA library (`libtorch_cuda.so`) when the program starts.
///
/// A program is linked only with libtorch's CPU library. If there is an NVIDIA driver, the program
/// loads the CUDA library from the same folder when it starts. One binary therefore runs with
/// libtorch for the CPU and with libtorch for CUDA. The [`Display`](fmt::Display) text of this enum
/// is one line with the cause and the fix.
///
/// ```no_run,standalone_crate
/// use amp_core::hardware::{CudaLibrary, cuda_library};
///
/// if let CudaLibrary::Failed { reason } = cuda_library() {
///     eprintln!("training on the CPU: {reason}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CudaLibrary {
    /// The CUDA library was loaded.
    Loaded {
        /// The path of the loaded file.
        path: String,
    },
    /// There is no NVIDIA driver: `libcuda.so.1` cannot be opened.
    NoDriver,
    /// There is an NVIDIA driver, but this libtorch supports only the CPU.
    NotInstalled {
        /// The path at which the library was expected.
        path: String,
    },
    /// There is an NVIDIA driver, but the library could not be loaded.
    Failed {
        /// The error message of the dynamic loader.
        reason: String,
    },
}

impl fmt::Display for CudaLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded { path } => write!(f, "{path} is loaded"),
            Self::NoDriver => write!(f, "there is no NVIDIA driver (libcuda.so.1 was not found)"),
            Self::NotInstalled { path } => write!(
                f,
                "this libtorch supports only the CPU ({path} does not exist): run `cargo amp setup --cuda`"
            ),
            Self::Failed { reason } => write!(
                f,
                "libtorch's CUDA library cannot be loaded: {reason}: run `cargo amp setup --cuda`"
            ),
        }
    }
}
