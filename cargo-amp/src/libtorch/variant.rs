//! The two variants of libtorch: for CPUs only, or with CUDA.

use std::fmt;

use super::version::REQUIRED;

/// The variant of a libtorch. The variant with CUDA contains the variant for CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    Cpu,
    Cuda,
}

/// A wheel in Python's package index. The dependencies of the wheel are not downloaded with it.
#[derive(Clone, Copy)]
pub(super) struct Wheel {
    name: &'static str,
    version: &'static str,
}

const fn wheel(name: &'static str, version: &'static str) -> Wheel {
    Wheel { name, version }
}

/// The wheels, in the versions that torch 2.11.0 and its cuda-toolkit 13.0.2 require. A libtorch
/// for CPUs needs only the first three wheels: libtorch_cpu.so is linked with libcudart from the
/// second and with libcupti from the third.
const WHEELS: [Wheel; 16] = [
    wheel("torch", REQUIRED),
    wheel("nvidia-cuda-runtime", "13.0.96"),
    wheel("nvidia-cuda-cupti", "13.0.85"),
    wheel("nvidia-cublas", "13.1.0.3"),
    wheel("nvidia-cuda-nvrtc", "13.0.88"),
    wheel("nvidia-cudnn-cu13", "9.19.0.56"),
    wheel("nvidia-cufft", "12.0.0.61"),
    wheel("nvidia-cufile", "1.15.1.6"),
    wheel("nvidia-curand", "10.4.0.35"),
    wheel("nvidia-cusolver", "12.0.4.66"),
    wheel("nvidia-cusparse", "12.6.3.3"),
    wheel("nvidia-cusparselt-cu13", "0.8.0"),
    wheel("nvidia-nccl-cu13", "2.28.9"),
    wheel("nvidia-nvjitlink", "13.0.88"),
    wheel("nvidia-nvshmem-cu13", "3.4.5"),
    wheel("nvidia-nvtx", "13.0.85"),
];

/// The files that are unpacked for CPUs. For each file, the first matching line decides: `+` means
/// that the file is unpacked, `-` that it is skipped. If no line matches, the file is skipped.
const CPU_RULES: &[&str] = &[
    "+torch/version.py",
    "+torch/include/*",
    "-torch/lib/libtorch.so",
    "-torch/lib/libtorch_cuda*",
    "-torch/lib/libc10_cuda*",
    "-torch/lib/libcaffe2_nvrtc*",
    "-torch/lib/libtorch_nvshmem*",
    "-torch/lib/libtorch_python*",
    "-torch/lib/libtorch_global_deps*",
    "-torch/lib/libshm*",
    "+torch/lib/*.so*",
    "+nvidia/cu13/lib/libcudart.so.*",
    "+nvidia/cu13/lib/libcupti.so.*",
];

/// The files that are unpacked for CUDA: all libraries that libtorch or CUDA's libraries may load.
/// The headers of CUDA are skipped, because the bindings do not include them.
const CUDA_RULES: &[&str] = &[
    "+torch/version.py",
    "+torch/include/*",
    "-torch/lib/libtorch_python*",
    "-torch/lib/libtorch_global_deps*",
    "-torch/lib/libshm*",
    "+torch/lib/*.so*",
    "-nvidia/*.alt.so*",
    "-nvidia/*/libcusolverMg.so*",
    "+nvidia/*/lib/*.so*",
];

/// The files without which a libtorch with CUDA is incomplete. A libtorch for CPUs needs all but
/// the last.
const NEEDED: [&str; 8] = [
    "torch/version.py",
    "torch/include/ATen/ATen.h",
    "torch/lib/libtorch.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
    "torch/lib/libtorch_cuda.so",
];

impl Variant {
    pub(super) fn wheels(self) -> &'static [Wheel] {
        match self {
            Variant::Cpu => &WHEELS[..3],
            Variant::Cuda => &WHEELS,
        }
    }

    pub(super) fn rules(self) -> &'static [&'static str] {
        match self {
            Variant::Cpu => CPU_RULES,
            Variant::Cuda => CUDA_RULES,
        }
    }

    /// Returns the files without which this variant is incomplete.
    pub(super) fn needed(self) -> &'static [&'static str] {
        match self {
            Variant::Cpu => &NEEDED[..7],
            Variant::Cuda => &NEEDED,
        }
    }

    /// Returns the size of the wheels in MB, measured on x86-64.
    pub(super) fn download_mb(self) -> u64 {
        match self {
            Variant::Cpu => 550,
            Variant::Cuda => 2520,
        }
    }

    /// Returns the disk space of the unpacked libtorch in MB, measured on x86-64.
    pub(super) fn unpacked_mb(self) -> u64 {
        match self {
            Variant::Cpu => 530,
            Variant::Cuda => 3610,
        }
    }

    /// Returns the variant's name in a manifest.
    pub(super) fn name(self) -> &'static str {
        match self {
            Variant::Cpu => "cpu",
            Variant::Cuda => "cuda",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Variant::Cpu, Variant::Cuda].into_iter().find(|variant| variant.name() == name)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Cpu => "for CPUs",
            Variant::Cuda => "with CUDA",
        })
    }
}

impl Wheel {
    /// Returns the wheel in the form in which pip expects a requirement, for example
    /// `torch==2.11.0`.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Returns whether `file` is the name of this wheel, for any Python, machine and local version,
    /// for example `torch-2.11.0+cu130-cp311-cp311-linux_x86_64.whl`.
    pub(super) fn is_named(&self, file: &str) -> bool {
        file.strip_prefix(&self.name.replace('-', "_"))
            .and_then(|rest| rest.strip_prefix('-')?.strip_prefix(self.version))
            .is_some_and(|rest| rest.starts_with(['-', '+']) && rest.ends_with(".whl"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Variant, WHEELS};

    #[test]
    fn a_wheel_is_known_by_its_name_and_version() {
        let [torch, runtime, ..] = WHEELS;
        assert!(torch.is_named("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"));
        assert!(torch.is_named("torch-2.11.0+cpu-cp311-cp311-linux_x86_64.whl"));
        assert!(runtime.is_named("nvidia_cuda_runtime-13.0.96-py3-none-manylinux1_x86_64.whl"));
        assert!(!runtime.is_named("nvidia_cuda_runtime-13.0.9-py3-none-manylinux1_x86_64.whl"));
        assert!(!torch.is_named("torch-2.11.01-cp311-cp311-manylinux_2_28_x86_64.whl"));
        assert!(!torch.is_named("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl.part"));
        assert!(!torch.is_named("torchvision-2.11.0-cp311-cp311-linux_x86_64.whl"));
    }

    #[test]
    fn the_cuda_packages_include_the_cpu_packages() {
        assert!(Variant::Cpu < Variant::Cuda);
        assert_eq!(Variant::Cuda.wheels().len(), WHEELS.len());
        let [cpu, cuda] = [Variant::Cpu, Variant::Cuda].map(Variant::needed);
        assert!(cuda.starts_with(cpu) && cuda.contains(&"torch/lib/libtorch_cuda.so"));
        assert!(!cpu.contains(&"torch/lib/libtorch_cuda.so"));
    }
}
