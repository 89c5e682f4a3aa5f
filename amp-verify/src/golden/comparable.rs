//! Decides whether a golden can be compared with the figures of a machine.

use amp_core::hardware::Fingerprint;

/// Returns the reason why the figures of machine `found` cannot be compared with the golden's, or
/// `None` if they can.
///
/// libtorch, TF32 and deterministic algorithms must be the same on all devices. On a CPU the
/// processor, its kernels and the number of threads may differ; the tolerance of a figure covers
/// such differences. On CUDA the compute capability must be equal, because libtorch chooses kernels
/// by it. On the golden's own model of GPU, figures must be equal.
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

/// Returns the machine's kernels. They influence rounding and peak memory: in bf16, convolutions with AVX2 and
/// with AVX-512 differ by a fifth in their memory, and so do f16 products on CPUs with f16
/// instructions.
pub(super) fn kernels(fingerprint: &Fingerprint) -> String {
    match fingerprint.multiplies_f16 {
        true => format!("{} with f16", fingerprint.capability),
        false => fingerprint.capability.clone(),
    }
}

/// Returns whether both machines run the same kernels: CPUs with the same kernel set, or one model of
/// GPU.
pub(super) fn same_kernels(golden: &Fingerprint, found: &Fingerprint) -> bool {
    kernels(golden) == kernels(found) && (golden.threads > 0 || golden.device == found.device)
}

/// Returns whether both machines have the same model of GPU and use deterministic algorithms. Equal
/// requests then give equal bits and use equal memory. Goldens are recorded in this way.
pub(super) fn same_gpu(golden: &Fingerprint, found: &Fingerprint) -> bool {
    let gpu = |machine: &Fingerprint| machine.threads == 0 && machine.deterministic;
    gpu(golden) && gpu(found) && golden.device == found.device
}

/// Returns the part of a golden's name that distinguishes machines: `cpu`, or `cuda_9_0`.
pub fn machine(fingerprint: &Fingerprint) -> String {
    match fingerprint.threads {
        0 => format!("cuda_{}", fingerprint.capability.replace('.', "_")),
        _ => "cpu".to_owned(),
    }
}
