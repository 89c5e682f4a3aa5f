//! Whether a golden can be compared with figures of a machine.

use amp_core::hardware::Fingerprint;

/// The reason why figures of `found` cannot be compared with those of `golden`; `None` if they can.
///
/// On a CPU the processor, its kernels and the number of threads may differ: the tolerance of a figure is
/// its spread over these. On CUDA the compute capability must be equal, because kernels are chosen by it;
/// on the same model of GPU as the golden's, figures must be equal. libtorch, TF32 and deterministic
/// algorithms must be the same on all devices.
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
        ("deterministic", switch(golden.deterministic), switch(found.deterministic)),
    ]
    .into_iter()
    .find(|(_, golden, found)| golden != found)
    .map(|(what, golden, found)| {
        format!("NOT COMPARABLE: {what} is {golden} in the golden, but {found} here")
    })
}

/// The machine's kernels, on which peak memory depends: convolutions with AVX2 and with AVX-512
/// differ by a fifth in their memory for bf16, and so do f16 products on CPUs with f16
/// instructions.
pub(super) fn kernels(fingerprint: &Fingerprint) -> String {
    match fingerprint.multiplies_f16 {
        true => format!("{} with f16", fingerprint.capability),
        false => fingerprint.capability.clone(),
    }
}

/// Whether both are the same model of GPU with deterministic algorithms: the same requests then give the
/// same bits and use the same memory. Goldens are recorded in this way.
pub(super) fn same_gpu(golden: &Fingerprint, found: &Fingerprint) -> bool {
    let gpu = |machine: &Fingerprint| machine.threads == 0 && machine.deterministic;
    gpu(golden) && gpu(found) && golden.device == found.device
}

/// The part of a golden's name that distinguishes machines: `cpu`, or `cuda_9_0`.
pub fn machine(fingerprint: &Fingerprint) -> String {
    match fingerprint.threads {
        0 => format!("cuda_{}", fingerprint.capability.replace('.', "_")),
        _ => "cpu".to_owned(),
    }
}
