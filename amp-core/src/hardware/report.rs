//! The capabilities of this machine, and the recommended precision.

use serde::{Deserialize, Serialize};

use super::{CudaLibrary, LIBTORCH_VERSION, cpu_field, cuda_devices, cuda_library};
use crate::{Result, ffi, precision::Precision};

/// The report of `cargo amp doctor`: the machine's capabilities, and the recommended precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of libtorch for which this program was built.
    pub libtorch: String,
    /// The CPU of this machine.
    pub cpu: Cpu,
    /// Whether libtorch's CUDA library was loaded, and if not, why.
    pub cuda_library: CudaLibrary,
    /// The CUDA version that the driver supports, such as `13.0`. `None` (null in JSON) if there is
    /// no usable CUDA device.
    pub cuda_driver: Option<String>,
    /// The CUDA devices that libtorch can use.
    pub devices: Vec<CudaDevice>,
    /// The precision to try first.
    pub recommended: Recommendation,
}

/// The properties of a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The name of the CPU model.
    pub name: String,
    /// The instruction set for which ATen chose its CPU kernels, such as `avx2`.
    pub kernels: String,
    /// The instructions of this CPU that matter for low precision.
    pub features: Vec<String>,
    /// The number of threads that libtorch uses for one operation.
    pub threads: i32,
}

/// The properties of a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CudaDevice {
    /// The index of the device, such as 0 in `cuda:0`.
    pub index: usize,
    /// The name of the GPU model.
    pub name: String,
    /// The compute capability of the device, as major and minor number.
    pub capability: (i32, i32),
    /// The number of the GPU's multiprocessors.
    pub multiprocessors: i32,
    /// The size of the device's memory in bytes.
    pub memory: u64,
    /// Whether the device has matrix units for f16. True for compute capability 7.0 or higher, so
    /// also, wrongly, for the GTX 16 series (7.5), which has no such units.
    pub tensor_cores: bool,
    /// Whether the device has matrix units for bf16: true for compute capability 8.0 or higher.
    pub bf16: bool,
    /// Whether the device can compute in TF32: true for compute capability 8.0 or higher.
    pub tf32: bool,
    /// Whether the device has matrix units for FP8: true for compute capability 8.9 or higher.
    pub fp8: bool,
}

/// A recommended precision, with the reason for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The recommended precision.
    pub precision: Precision,
    /// Why this precision is recommended on this machine.
    pub reason: String,
}

/// CPU features for computation in low precision. The names are those that Linux writes in
/// `/proc/cpuinfo`.
const FEATURES: [&str; 8] =
    ["avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimdhp", "bf16"];

impl Report {
    /// Reads the properties of this machine and its devices.
    ///
    /// # Errors
    /// When a device cannot be queried.
    pub fn gather() -> Result<Self> {
        let flags = cpu_field("flags").or_else(|| cpu_field("Features")).unwrap_or_default();
        let cpu = Cpu {
            name: super::cpu_name(),
            kernels: ffi::cpu_capability()?.to_lowercase(),
            features: FEATURES
                .into_iter()
                .filter(|feature| flags.split_whitespace().any(|flag| flag == *feature))
                .map(str::to_owned)
                .collect(),
            threads: tch::get_num_threads(),
        };
        let cuda_library = cuda_library();
        let mut devices = Vec::new();
        let mut cuda_driver = None;
        // If libtorch's CUDA library cannot be loaded, the report says so in `cuda_library`, and
        // lists no devices.
        for index in 0..cuda_devices().unwrap_or(0) as usize {
            let device = ffi::cuda_device(index)?;
            // The driver returns its CUDA version as one number: 13000 stands for 13.0.
            cuda_driver = Some(format!("{}.{}", device.driver / 1000, device.driver % 1000 / 10));
            devices.push(CudaDevice::new(index, device));
        }
        let recommended = recommend(&cpu, devices.first());
        let libtorch = LIBTORCH_VERSION.into();
        Ok(Self { libtorch, cpu, cuda_library, cuda_driver, devices, recommended })
    }
}

impl CudaDevice {
    fn new(index: usize, device: ffi::CudaDevice) -> Self {
        let ffi::CudaDevice { name, capability, multiprocessors, memory, .. } = device;
        Self {
            index,
            name,
            capability,
            multiprocessors,
            memory,
            tensor_cores: capability >= (7, 0),
            bf16: capability >= (8, 0),
            tf32: capability >= (8, 0),
            fp8: capability >= (8, 9),
        }
    }
}

/// Recommends a precision for the device, or for the CPU if there is no device. Prefers bf16 to
/// f16, because bf16 has the range of f32. Values therefore do not overflow, and no loss scaling is
/// needed.
fn recommend(cpu: &Cpu, device: Option<&CudaDevice>) -> Recommendation {
    let has = |feature: &str| cpu.features.iter().any(|own| own == feature);
    let (precision, reason) = match device {
        Some(device) if device.bf16 => (
            Precision::Bf16Mixed,
            format!(
                "{} has bf16 matrix units; bf16 has the range of f32, so no loss scaling is needed",
                device.name
            ),
        ),
        Some(device) if device.tensor_cores => (
            Precision::F16Mixed,
            format!(
                "{} has f16 matrix units, but no bf16 matrix units; f16 needs loss scaling",
                device.name
            ),
        ),
        Some(device) => (
            Precision::F32True,
            format!("{} has no matrix units for 16-bit dtypes", device.name),
        ),
        None if has("amx_bf16") || has("avx512_bf16") || has("bf16") => (
            Precision::Bf16Mixed,
            "no CUDA device, and this CPU multiplies bf16 in hardware; compare its speed with \
             32-true, because small models gain nothing".into(),
        ),
        None => (
            Precision::F32True,
            "no CUDA device, and this CPU has no bf16 instructions: low precision would be emulated".into(),
        ),
    };
    Recommendation { precision, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(features: &[&str]) -> Cpu {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        Cpu { name: "cpu".into(), kernels: "avx2".into(), features, threads: 1 }
    }

    fn device(major: i32, minor: i32) -> CudaDevice {
        let (name, capability) = ("gpu".to_owned(), (major, minor));
        let device =
            ffi::CudaDevice { name, capability, multiprocessors: 1, driver: 13000, memory: 1 };
        CudaDevice::new(0, device)
    }

    /// Checks, for several compute capabilities, which dtypes a device supports. The expected
    /// values come from NVIDIA's tables of arithmetic by compute capability (CUDA C programming
    /// guide).
    #[test]
    fn capabilities_decide_what_a_device_can_do() {
        let of = |major, minor| {
            let device = device(major, minor);
            (device.tensor_cores, device.bf16, device.tf32, device.fp8)
        };
        assert_eq!(of(6, 1), (false, false, false, false));
        assert_eq!(of(7, 0), (true, false, false, false));
        assert_eq!(of(7, 5), (true, false, false, false));
        assert_eq!(of(8, 0), (true, true, true, false));
        assert_eq!(of(8, 9), (true, true, true, true));
        assert_eq!(of(9, 0), (true, true, true, true));
    }

    #[test]
    fn the_recommendation_follows_the_capability() {
        let plain = cpu(&["avx2"]);
        let on = |device: Option<&CudaDevice>| recommend(&plain, device).precision;
        assert_eq!(on(Some(&device(9, 0))), Precision::Bf16Mixed);
        assert_eq!(on(Some(&device(7, 5))), Precision::F16Mixed);
        assert_eq!(on(Some(&device(6, 1))), Precision::F32True);
        assert_eq!(on(None), Precision::F32True);
        let bf16 = recommend(&cpu(&["avx512_bf16"]), None);
        assert_eq!(bf16.precision, Precision::Bf16Mixed);
    }
}
