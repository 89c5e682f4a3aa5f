//! Environment variables that make this CPU use the kernels and the numbers of threads of other
//! CPUs.

use std::fs;

/// The description of the kernel sets in `NAME.spread.json`, the file of the differences between
/// CPUs.
pub(super) const DESCRIPTION: &str = "ATen, oneDNN and MKL kernels of SSE, AVX2 and AVX-512 machines \
                                      with and without bf16 instructions, and MKL's compatible ones, \
                                      each with 1 and 2 threads";

/// The kernel sets. Each has the values of ATEN_CPU_CAPABILITY (ATen's kernels), ONEDNN_MAX_CPU_ISA
/// (the newest instructions that oneDNN may use), MKL_ENABLE_INSTRUCTIONS, and MKL_CBWR (MKL's mode
/// with equal results on every processor; not set if empty). `AVX512_CORE` excludes bf16
/// instructions, and `ALL` allows all instructions of this machine.
const KERNELS: [(&str, &str, &str, &str); 5] = [
    ("default", "SSE41", "SSE4_2", ""),
    ("avx2", "AVX2", "AVX2", ""),
    ("avx2", "AVX2", "AVX2", "COMPATIBLE"),
    ("avx512", "AVX512_CORE", "AVX512", ""),
    ("avx512", "ALL", "AVX512", ""),
];
const THREADS: [usize; 2] = [1, 2];

/// A choice of kernels and of the number of threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KernelSet {
    /// The number of threads of one operation.
    pub(super) threads: usize,
    /// The environment variables that select the kernels in a new process.
    pub(super) environment: Vec<(&'static str, String)>,
}

/// Returns every combination of kernels and threads.
pub(super) fn all() -> Vec<KernelSet> {
    let set = |(aten, onednn, mkl, reproducible): (&str, &str, &str, &str), threads| {
        let mut environment = vec![
            ("ATEN_CPU_CAPABILITY", aten.to_owned()),
            ("ONEDNN_MAX_CPU_ISA", onednn.to_owned()),
            ("MKL_ENABLE_INSTRUCTIONS", mkl.to_owned()),
        ];
        if !reproducible.is_empty() {
            environment.push(("MKL_CBWR", reproducible.to_owned()));
        }
        KernelSet { threads, environment }
    };
    KERNELS.iter().flat_map(|kernels| THREADS.map(|threads| set(*kernels, threads))).collect()
}

/// The description, in `NAME.spread.json`, of the kernel sets that [`own_of_cpu`] returns.
pub(super) const OWN_DESCRIPTION: &str = "its own kernels, with 1 and 2 threads";

/// Returns the kernel sets with this machine's newest kernels, one for each number of threads.
pub(super) fn own_of_cpu() -> Vec<KernelSet> {
    all().split_off((KERNELS.len() - 1) * THREADS.len())
}

/// Returns the name of the CPU, as Linux reports it.
pub(super) fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    name.and_then(|rest| rest.split_once(": ")).map_or("a CPU", |(_, name)| name).to_owned()
}
