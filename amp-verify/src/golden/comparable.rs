//! Decides whether results that were recorded on one machine (a golden) can be compared with
//! results of another machine.

use amp_core::hardware::Fingerprint;

/// Returns the reason why results of the machine `found` cannot be compared with results of the
/// machine `golden`. Returns `None` if they can be compared.
///
/// The two machines must have the same version of libtorch, and the same settings of TF32 and of
/// deterministic algorithms. Two CPUs may differ in processor, kernels and number of threads,
/// because the tolerances cover the resulting differences. Two GPUs must have the same compute
/// capability, because libtorch chooses its kernels by the compute capability. If the product names
/// of the two GPUs are equal, the results must be equal.
pub fn incomparable(golden: &Fingerprint, found: &Fingerprint) -> Option<String> {
    let cuda = |machine: &Fingerprint| machine.threads == 0;
    let kind = |machine: &Fingerprint| match cuda(machine) {
        true => format!("compute capability {}", machine.capability),
        false => "a CPU".to_owned(),
    };
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    [
        ("device", kind(golden), kind(found)),
        ("libtorch", golden.libtorch.clone(), found.libtorch.clone()),
        ("TF32", switch(golden.tf32), switch(found.tf32)),
        ("deterministic mode", switch(golden.deterministic), switch(found.deterministic)),
    ]
    .into_iter()
    .find(|(_, golden, found)| golden != found)
    .map(|(what, golden, found)| {
        format!("NOT COMPARABLE: {what} is {golden} in the golden, but {found} here")
    })
}

/// Returns the name of the CPU or GPU kernels that the machine uses. The kernels influence rounding
/// and peak memory. In bf16, for example, peak memory of convolutions differs by a fifth between
/// AVX2 and AVX-512 kernels. In f16, peak memory of matrix products differs as much between CPUs
/// with and without f16 instructions.
pub(super) fn kernels(fingerprint: &Fingerprint) -> String {
    match fingerprint.multiplies_f16 {
        true => format!("{} with f16", fingerprint.capability),
        false => fingerprint.capability.clone(),
    }
}

/// Returns whether the two machines run the same kernels: CPUs with the same kernel set, or GPUs
/// with the same product name.
pub(super) fn same_kernels(golden: &Fingerprint, found: &Fingerprint) -> bool {
    kernels(golden) == kernels(found) && (golden.threads > 0 || golden.device == found.device)
}

/// Returns whether the GPUs of the two machines have the same product name and use deterministic
/// algorithms, as golden tests do. If so, the same training run gives bitwise equal results and
/// needs the same memory on both.
pub(super) fn same_gpu(golden: &Fingerprint, found: &Fingerprint) -> bool {
    let gpu = |machine: &Fingerprint| machine.threads == 0 && machine.deterministic;
    gpu(golden) && gpu(found) && golden.device == found.device
}

/// Returns the part of a golden's file name that names the kind of machine: `cpu`, or the compute
/// capability of a GPU, for example `cuda_9_0`.
pub fn machine(fingerprint: &Fingerprint) -> String {
    match fingerprint.threads {
        0 => format!("cuda_{}", fingerprint.capability.replace('.', "_")),
        _ => "cpu".to_owned(),
    }
}
