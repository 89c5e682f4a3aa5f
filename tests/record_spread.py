#!/usr/bin/env python3
"""Measures how far the goldens' figures move between machines, on one machine.

Kernel sets (ATen, oneDNN, MKL) and the thread count are switched to those of other CPUs
(kernel_sets.py); the code is the same each time, so what differs is what a golden must allow.
Needs a CPU with AVX-512; takes ten minutes on two cores. Writes NAME.spread.json beside every
NAME.snap of a CPU in tests/tests/goldens, or beside those named; a new golden is taken first.
Usage, from the checkout, after `cargo amp verify` has built the binary:

    python3 tests/record_spread.py target/debug/amp [NAME…]
"""

import json
import pathlib
import subprocess
import sys

import kernel_sets

GOLDENS = pathlib.Path(__file__).parent / "tests" / "goldens"
FIGURES = ["accuracy", "loss", "peak_memory_bytes"]


def measure(amp, golden):
    """The golden's own case under every kernel set and thread count."""
    precisions = [name for name in golden["runs"] if name != "32-true"]
    command = [amp, "verify", "--device", "cpu", "--format", "json", "--quiet"]
    command += ["--model", golden["model"], "--seed", str(golden["seeds"][0])]
    command += ["--epochs", str(golden["epochs"]), "--precision", ",".join(precisions)]
    samples = {}
    for kernels, threads in kernel_sets.SETS:
        environment = kernel_sets.environment(kernels, threads)
        own = [*command, "--threads", str(threads)]
        report = json.loads(subprocess.check_output(own, env=environment))
        for run in report["runs"]:
            figures = samples.setdefault(run["precision"], {name: [] for name in FIGURES})
            for name in FIGURES:
                figures[name].append(float(run[name]))
    return samples


def main():
    amp, *chosen = sys.argv[1:]
    names = chosen or sorted(path.stem for path in GOLDENS.glob("*_cpu.snap"))
    for name in names:
        _, _, body = (GOLDENS / f"{name}.snap").read_text().split("---\n", 2)
        golden = json.loads(body)
        spread = {
            "recorded_by": f"tests/record_spread.py on {kernel_sets.processor()}: "
            + kernel_sets.DESCRIPTION,
            "examples": golden["examples"],
            "samples": measure(amp, golden),
        }
        path = GOLDENS / f"{name}.spread.json"
        path.write_text(json.dumps(spread, indent=1) + "\n")
        print(name, flush=True)


if __name__ == "__main__":
    main()
