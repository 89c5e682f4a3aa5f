//! Decides whether the values of a golden can be compared with those of another machine.

use amp_core::hardware::Fingerprint;

/// Returns the reason why the values of machine `found` cannot be compared with those of the
/// golden, or `None` if they can.
///
/// The version of libtorch and the settings of TF32 and deterministic algorithms must be the same.
/// Two CPUs may have other processors, kernels and numbers of threads; the tolerances cover the
/// resulting differences. Two GPUs must have the same compute capability, because libtorch chooses
/// kernels by it. On the same model of GPU, the values must even be equal.
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

/// Names the machine's kernels. They influence rounding and peak memory. In bf16, for example,
/// convolutions with AVX2 need a fifth more or less memory than with AVX-512. The same holds for
/// f16 products on CPUs with and without f16 instructions.
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

/// Returns whether the two machines have the same model of GPU and use deterministic algorithms, as
/// goldens do. The same run then gives the same bits and needs the same memory on both.
pub(super) fn same_gpu(golden: &Fingerprint, found: &Fingerprint) -> bool {
    let gpu = |machine: &Fingerprint| machine.threads == 0 && machine.deterministic;
    gpu(golden) && gpu(found) && golden.device == found.device
}

/// Returns the last part of a golden's name, which distinguishes kinds of machines: `cpu`, or for a
/// GPU its compute capability, for example `cuda_9_0`.
pub fn machine(fingerprint: &Fingerprint) -> String {
    match fingerprint.threads {
        0 => format!("cuda_{}", fingerprint.capability.replace('.', "_")),
        _ => "cpu".to_owned(),
    }
}
