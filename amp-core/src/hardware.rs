//! Describes the machine, and sets the switches of this process that affect results: TF32,
//! deterministic algorithms and the seeds of random generators.

mod report;

pub use crate::ffi::CudaLibrary;
pub use report::{Cpu, CudaDevice, Recommendation, Report};

use std::env;

use serde::{Deserialize, Serialize};
use tch::{Cuda, Device};

use crate::{Error, Result, ffi, random};

/// The properties of the machine and of this process that affect the results of a run, besides the
/// model. Results from runs with different properties are not comparable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The name of the GPU or CPU.
    pub device: String,
    /// On CUDA, the compute capability, such as `9.0`. On a CPU, the instruction set for which ATen
    /// chose its kernels: `avx512`, `avx2`, `default` or another. Different kernels give different
    /// results. The environment variable `ATEN_CPU_CAPABILITY` can select kernels for a less
    /// capable CPU.
    pub capability: String,
    /// Whether libtorch multiplies f16 numbers with instructions of the CPU (AVX512-FP16, for
    /// example). Kernels with these instructions round differently from other kernels and need
    /// workspaces of other sizes. The environment variable `ONEDNN_MAX_CPU_ISA` can exclude these
    /// kernels.
    #[serde(default)]
    pub multiplies_f16: bool,
    /// The version of libtorch, such as `2.11.0`.
    pub libtorch: String,
    /// The number of CPU threads for one operation. It is 0 on CUDA.
    pub threads: i32,
    /// Whether f32 matrix products, convolutions or recurrent layers may run in TF32.
    pub tf32: bool,
    /// Whether libtorch was asked for deterministic algorithms.
    pub deterministic: bool,
}

/// The version of libtorch that tch 0.24 needs.
pub const LIBTORCH_VERSION: &str = "2.11.0";

impl Fingerprint {
    /// Returns the properties of `device` and the current settings of this process.
    ///
    /// # Errors
    /// When the device cannot be queried.
    pub fn of(device: Device) -> Result<Self> {
        let (tf32, deterministic) = ffi::numerics()?;
        let (name, capability, threads) = match device {
            Device::Cuda(index) => {
                let cuda = ffi::cuda_device(index)?;
                let (major, minor) = cuda.capability;
                (cuda.name, format!("{major}.{minor}"), 0)
            }
            _ => {
                let kernels = ffi::cpu_capability()?.to_lowercase();
                (cpu_name(), kernels, tch::get_num_threads())
            }
        };
        let libtorch = LIBTORCH_VERSION.to_owned();
        let multiplies_f16 = threads > 0 && ffi::cpu_multiplies_f16()?;
        Ok(Self {
            device: name,
            capability,
            multiplies_f16,
            libtorch,
            threads,
            tf32,
            deterministic,
        })
    }
}

/// Parses `cpu`, `cuda`, `cuda:N` or `auto` (CUDA if present, otherwise the CPU).
///
/// # Errors
/// When the text is not one of these forms, or there is no such device.
pub fn parse_device(text: &str) -> Result<Device> {
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "auto" => return Ok(if cuda_devices()? > 0 { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => 0,
        other => {
            other.strip_prefix("cuda:").and_then(|index| index.parse().ok()).ok_or_else(|| {
                Error::config(format!(
                    "unknown device `{text}`: expected auto, cpu, cuda or cuda:N"
                ))
            })?
        }
    };
    let devices = cuda_devices()?;
    if devices == 0 {
        let why = match cuda_library() {
            CudaLibrary::Loaded { .. } => "check the driver with nvidia-smi".to_owned(),
            other => other.to_string(),
        };
        return Err(Error::config(format!(
            "device `{text}`: libtorch sees no CUDA device here: {why}, or use --device cpu"
        )));
    }
    if index as i64 >= devices {
        return Err(Error::config(format!(
            "device `{text}`: there are {devices} CUDA devices, the last is cuda:{}",
            devices - 1
        )));
    }
    Ok(Device::Cuda(index))
}

/// Returns the number of CUDA devices that libtorch can use. The number is 0 if there is no NVIDIA
/// driver, or if libtorch was installed without CUDA.
///
/// # Errors
/// [`Error::Config`] when there is an NVIDIA driver but libtorch's CUDA library cannot be loaded.
/// The text gives the reason.
pub fn cuda_devices() -> Result<i64> {
    match cuda_library() {
        CudaLibrary::Loaded { .. } => Ok(Cuda::device_count()),
        CudaLibrary::NoDriver | CudaLibrary::NotInstalled { .. } => Ok(0),
        failed @ CudaLibrary::Failed { .. } => {
            Err(Error::config(format!("{failed}, or use --device cpu")))
        }
    }
}

/// Returns whether libtorch's CUDA library was loaded when this program started, and if not, why.
pub fn cuda_library() -> CudaLibrary {
    ffi::cuda_library()
}

/// Switches TF32 and deterministic algorithms on or off, for the whole process. TF32 applies to f32
/// matrix products, convolutions and recurrent layers. Both settings are off when the program
/// starts, whereas PyTorch starts with TF32 on for cuDNN. Waits while another thread is in a
/// [reproducible section](crate::random::seeded).
///
/// # Errors
/// When libtorch refuses a setting.
pub fn set_numerics(tf32: bool, deterministic: bool) -> Result<()> {
    let _place = random::place();
    ffi::set_numerics(tf32, deterministic)
}

/// Seeds libtorch's random generators on every device. The whole process shares these generators.
/// Other threads may take random numbers from these generators right afterwards. To prevent that,
/// use [`random::seeded`]. Waits while another thread is in a reproducible section.
///
/// # Errors
/// In a training step while it is captured as a CUDA graph. The trainer then runs the steps without
/// a graph.
pub fn seed_everything(seed: u64) -> Result<()> {
    let _place = random::place();
    ffi::seed_all_random(seed)
}

fn cpu_name() -> String {
    cpu_field("model name").unwrap_or_else(|| env::consts::ARCH.to_owned())
}

/// Returns the value of the field `name` of the first CPU in `/proc/cpuinfo`.
fn cpu_field(name: &str) -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let fields = info.lines().filter_map(|line| line.split_once(':'));
    let mut values = fields.filter(|(field, _)| field.trim() == name);
    values.next().map(|(_, value)| value.trim().to_owned())
}
