//! Makes a new process use the CPU kernels with which a golden was recorded, on a CPU that has more
//! instructions than the golden's CPU.
//!
//! Kernels for other instructions round differently. The metric and the loss still agree within
//! their tolerances. But peak memory differs by a fifth, and a scaled gradient close to the largest
//! f16 number may overflow with only one of the two kernel sets. A CPU with more instructions can
//! run the golden's kernels, and the comparison is then as strict as on the golden's CPU.

use std::env;

use amp_core::hardware::Fingerprint;

/// The kernel sets of ATEN_CPU_CAPABILITY, from the fewest to the most instructions, each with the
/// corresponding values of MKL_ENABLE_INSTRUCTIONS and ONEDNN_MAX_CPU_ISA. With these values,
/// oneDNN does not use instructions that multiply f16 numbers.
const SETS: [(&str, &str, &str); 3] = [
    ("default", "SSE4_2", "SSE41"),
    ("avx2", "AVX2", "AVX2"),
    ("avx512", "AVX512", "AVX512_CORE_BF16"),
];

/// The name and the value of an environment variable.
pub(super) type Variable = (&'static str, &'static str);

/// Returns the environment variables that make a new process on the machine `found` use the CPU
/// kernels with which the golden was recorded. Returns none if the machine is a GPU, uses these
/// kernels anyway, or lacks instructions for them. Leaves out variables that are already set in
/// this process.
pub(super) fn environment(golden: &Fingerprint, found: &Fingerprint) -> Vec<Variable> {
    let variables = variables(golden, found).unwrap_or_default();
    variables.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect()
}

/// Returns the environment variables that select the golden's CPU kernels on the machine `found`,
/// including variables that are already set. Returns `None` if the golden's kernels cannot be
/// selected.
fn variables(golden: &Fingerprint, found: &Fingerprint) -> Option<Vec<Variable>> {
    let rank = |machine: &Fingerprint| {
        let is_cpu = machine.threads > 0;
        let position = SETS.iter().position(|(aten, ..)| *aten == machine.capability);
        position.filter(|_| is_cpu)
    };
    let (wanted, newest) = (rank(golden)?, rank(found)?);
    let lacks_f16 = golden.multiplies_f16 && !found.multiplies_f16;
    if wanted > newest || lacks_f16 {
        return None;
    }
    let (aten, mkl, onednn) = SETS[wanted];
    let mut variables = Vec::new();
    if wanted < newest {
        variables.extend([("ATEN_CPU_CAPABILITY", aten), ("MKL_ENABLE_INSTRUCTIONS", mkl)]);
    }
    if !golden.multiplies_f16 && (wanted < newest || found.multiplies_f16) {
        variables.push(("ONEDNN_MAX_CPU_ISA", onednn));
    }
    Some(variables)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Fingerprint, Variable, variables};

    fn cpu(capability: &str, multiplies_f16: bool) -> Fingerprint {
        Fingerprint {
            device: "a CPU".into(),
            capability: capability.into(),
            multiplies_f16,
            libtorch: "2.11.0".into(),
            threads: 2,
            tf32: false,
            deterministic: false,
        }
    }

    const AVX2: [Variable; 3] = [
        ("ATEN_CPU_CAPABILITY", "avx2"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ];

    #[rstest]
    #[case::equal(cpu("avx512", false), cpu("avx512", false), Some(vec![]))]
    #[case::equal_with_f16(cpu("avx512", true), cpu("avx512", true), Some(vec![]))]
    #[case::f16_here(
        cpu("avx512", false),
        cpu("avx512", true),
        Some(vec![("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")])
    )]
    #[case::more_here(cpu("avx2", false), cpu("avx512", false), Some(AVX2.to_vec()))]
    #[case::more_and_f16_here(cpu("avx2", false), cpu("avx512", true), Some(AVX2.to_vec()))]
    #[case::fewer_here(cpu("avx512", false), cpu("avx2", false), None)]
    #[case::no_f16_here(cpu("avx512", true), cpu("avx512", false), None)]
    #[case::other_kernels(cpu("vsx", false), cpu("avx2", false), None)]
    #[case::gpu(
        Fingerprint { threads: 0, ..cpu("9.0", false) },
        Fingerprint { threads: 0, ..cpu("9.0", false) },
        None
    )]
    fn a_cpu_with_more_instructions_runs_the_goldens_kernels(
        #[case] golden: Fingerprint,
        #[case] found: Fingerprint,
        #[case] expected: Option<Vec<Variable>>,
    ) {
        assert_eq!(variables(&golden, &found), expected);
    }
}
