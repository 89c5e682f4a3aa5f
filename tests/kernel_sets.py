"""The kernels and thread counts of other CPUs, switched to on this one by the environment."""

import itertools
import os
import re

# ATen's kernels, oneDNN's newest instructions, MKL's, and whether MKL must give the same numbers
# on every processor. AVX512_CORE has no bf16 instructions, ALL has what this machine has.
KERNELS = [
    ("default", "SSE41", "SSE4_2", ""),
    ("avx2", "AVX2", "AVX2", ""),
    ("avx2", "AVX2", "AVX2", "COMPATIBLE"),
    ("avx512", "AVX512_CORE", "AVX512", ""),
    ("avx512", "ALL", "AVX512", ""),
]
THREADS = [1, 2]
# Every combination: kernels and threads.
SETS = list(itertools.product(KERNELS, THREADS))
# Those of this machine itself.
OWN = [(kernels, threads) for kernels, threads in SETS if kernels == KERNELS[-1]]
DESCRIPTION = (
    "ATen, oneDNN and MKL kernels of SSE, AVX2 and AVX-512 machines with and without bf16"
    " instructions, and MKL's compatible ones, each with 1 and 2 threads"
)
OWN_DESCRIPTION = "its own kernels, with 1 and 2 threads"


def environment(kernels, threads):
    aten, onednn, mkl, reproducible = kernels
    own = dict(
        os.environ,
        ATEN_CPU_CAPABILITY=aten,
        ONEDNN_MAX_CPU_ISA=onednn,
        MKL_ENABLE_INSTRUCTIONS=mkl,
        OMP_NUM_THREADS=str(threads),
    )
    if reproducible:
        own["MKL_CBWR"] = reproducible
    return own


def processor():
    """The CPU's name, as Linux has it."""
    with open("/proc/cpuinfo") as file:
        found = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return found[1] if found else "a CPU"
