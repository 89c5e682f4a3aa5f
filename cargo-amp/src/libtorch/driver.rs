//! Detects an NVIDIA driver. Without a driver, CUDA's libraries have no use.

use std::env;
use std::path::{Path, PathBuf};

/// The folders in which Linux distributions, containers and WSL store the library of the NVIDIA
/// driver.
const LIBRARY_FOLDERS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];

/// Files that exist if, and only if, the driver is loaded.
const LOADED: [&str; 2] = ["/proc/driver/nvidia/version", "/dev/nvidiactl"];

/// Returns whether a program that this process starts could use an NVIDIA GPU. Looks only for
/// files, without calling the driver.
pub(super) fn is_present() -> bool {
    let hidden = env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|set| hides_every_gpu(&set));
    !hidden && (LOADED.iter().any(|path| Path::new(path).exists()) || has_library())
}

/// Returns whether the value `visible` of `CUDA_VISIBLE_DEVICES` hides all GPUs. The value is a
/// list of devices. CUDA ignores the first device in the list that does not exist, and all devices
/// after it.
fn hides_every_gpu(visible: &str) -> bool {
    visible.is_empty() || visible.starts_with("-1")
}

fn has_library() -> bool {
    let set = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = LIBRARY_FOLDERS.iter().map(PathBuf::from).chain(env::split_paths(&set));
    folders.into_iter().any(|folder| folder.join("libcuda.so.1").exists())
}

#[cfg(test)]
mod tests {
    use super::hides_every_gpu;

    #[test]
    fn only_an_empty_list_of_devices_hides_the_driver() {
        assert!(hides_every_gpu("") && hides_every_gpu("-1") && hides_every_gpu("-1,0"));
        assert!(!hides_every_gpu("0") && !hides_every_gpu("1,-1") && !hides_every_gpu("GPU-8932"));
    }
}
