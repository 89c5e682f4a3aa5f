#!/usr/bin/env python3
"""Measures how far the golden's figures move between machines, on one machine.

Kernel sets (ATen, oneDNN, MKL) and the thread count are switched to those of other CPUs; the code
is the same each time, so what differs is what a golden must allow. Needs a CPU with AVX-512.
Usage, from the checkout, after `cargo amp verify` has built the binary:

    python3 tests/record_spread.py target/debug/amp
"""

import json
import os
import pathlib
import subprocess
import sys

# Name of ATen's kernels, of oneDNN's, of MKL's.
KERNELS = [("default", "SSE41", "SSE4_2"), ("avx2", "AVX2", "AVX2"), ("avx512", "ALL", "AVX512")]
THREADS = [1, 2]
# The golden's case; tests/tests/golden.rs runs the same.
ARGUMENTS = ["verify", "--device", "cpu", "--epochs", "3", "--format", "json", "--quiet"]
EXAMPLES = 360


def main():
    amp = sys.argv[1]
    samples = {}
    for aten, onednn, mkl in KERNELS:
        for threads in THREADS:
            environment = dict(
                os.environ,
                ATEN_CPU_CAPABILITY=aten,
                ONEDNN_MAX_CPU_ISA=onednn,
                MKL_ENABLE_INSTRUCTIONS=mkl,
            )
            command = [amp, *ARGUMENTS, "--threads", str(threads)]
            report = json.loads(subprocess.check_output(command, env=environment))
            for run in report["runs"]:
                figures = samples.setdefault(run["precision"], {})
                for name in ["accuracy", "loss", "peak_memory_bytes"]:
                    figures.setdefault(name, []).append(float(run[name]))
    spread = {
        "recorded_by": "tests/record_spread.py: ATen, oneDNN and MKL kernels of SSE, AVX2 and"
        " AVX-512 machines, with 1 and 2 threads",
        "examples": EXAMPLES,
        "samples": samples,
    }
    path = pathlib.Path(__file__).parent / "tests" / "goldens" / "cpu_spread.json"
    path.write_text(json.dumps(spread, indent=1) + "\n")


main()
