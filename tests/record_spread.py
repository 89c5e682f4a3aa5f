#!/usr/bin/env python3
"""Measures how far the goldens' figures move between machines, on one machine.

Kernel sets (ATen, oneDNN, MKL) and the thread count are switched to those of other CPUs
(kernel_sets.py); the code is the same each time, so what differs is what a golden must allow.
Needs a CPU with AVX-512; takes ten minutes on two cores. Writes NAME.spread.json beside every
NAME.snap of a CPU in tests/tests/goldens, or beside those named; a new golden is taken first.
With --add the accuracies and losses of this CPU's own kernels are added to what others recorded: for
kernels that those had not, as those of f16 with AVX512-FP16. Memory is held against that of the same
kernels alone.
Usage, from the checkout, after `cargo amp verify` has built the binary:

    python3 tests/record_spread.py target/debug/amp [--add] [NAME…]
"""

import json
import pathlib
import subprocess
import sys

import kernel_sets

GOLDENS = pathlib.Path(__file__).parent / "tests" / "goldens"
FIGURES = ["accuracy", "loss", "peak_memory_bytes"]


def measure(amp, golden, sets):
    """The golden's own case under each of these kernel sets and thread counts."""
    precisions = [name for name in golden["runs"] if name != "32-true"]
    command = [amp, "verify", "--device", "cpu", "--format", "json", "--quiet"]
    command += ["--model", golden["model"], "--seed", str(golden["seeds"][0])]
    command += ["--epochs", str(golden["epochs"]), "--precision", ",".join(precisions)]
    samples = {}
    for kernels, threads in sets:
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
    adds = "--add" in chosen
    chosen = [name for name in chosen if name != "--add"]
    sets = kernel_sets.OWN if adds else kernel_sets.SETS
    by = f"tests/record_spread.py on {kernel_sets.processor()}: "
    by += kernel_sets.OWN_DESCRIPTION if adds else kernel_sets.DESCRIPTION
    names = chosen or sorted(path.stem for path in GOLDENS.glob("*_cpu.snap"))
    for name in names:
        _, _, body = (GOLDENS / f"{name}.snap").read_text().split("---\n", 2)
        golden = json.loads(body)
        spread = {
            "recorded_by": by,
            "examples": golden["examples"],
            "samples": measure(amp, golden, sets),
        }
        path = GOLDENS / f"{name}.spread.json"
        if adds:
            known = json.loads(path.read_text())
            spread["recorded_by"] = f"{known['recorded_by']}; {by}"
            for precision, figures in spread["samples"].items():
                own = known["samples"][precision]
                figures["peak_memory_bytes"] = []
                for figure in FIGURES:
                    figures[figure][:0] = own[figure]
        path.write_text(json.dumps(spread, indent=1) + "\n")
        print(name, flush=True)


if __name__ == "__main__":
    main()
