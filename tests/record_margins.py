#!/usr/bin/env python3
"""Records what the gate judges by into fixtures/margins.json: two populations of unchanged runs.

`metric`: the spread over seeds of 32-true's metric less each precision's, σ_d. A model's margin δ
is three times its widest σ_d, rounded up to half a percentage point; the gate prints the power that
its seeds have against it. The margins in fixtures/src/models/mod.rs are these; a test holds them
together. Takes ten minutes on two cores.

`steps`: the distance of the first steps from 32-true ones over seeds, on a CPU over kernel sets and
threads as well: of errors the mean and deviation of their power 2/3, of differences their own.
amp-verify/src/gate/conformance/bounds.rs makes the bounds of these. Takes half an hour on two
cores. On a GPU machine without Rust, `./run.sh record-steps` of the packed folder does it.

Usage, from the checkout, after `cargo amp gate` has built the binary; each replaces its own part:

    python3 tests/record_margins.py target/debug/amp metric
    python3 tests/record_margins.py target/debug/amp steps [cpu|cuda]
"""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import kernel_sets

PRECISIONS = ["16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true"]
METRIC_SEEDS = range(100, 110)
STEP_SEEDS = range(1000, 1040)
GPU_PROCESSES = 8
# An error's square is a sum of squares, whose cube root is close to normal (Wilson and Hilferty
# 1931): that is recorded. Differences lie around a mean; of the loss's the sign is not known, and
# its mean is taken as zero.
ERRORS = ["gradient_error", "update_error"]
DIFFERENCES = ["loss_error", "update_bias", "norm_bias"]
# What the planted regression is held against: `sound` in fixtures/src/models/mod.rs.
PLANTED = {"MendedLayerNorm": 3}
PATH = pathlib.Path(__file__).parent.parent / "fixtures" / "margins.json"


def significant(value, digits=4):
    return float(f"{value:.{digits}g}")


def metric(amp, margins):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "gate.json"
        count = str(len(METRIC_SEEDS))
        command = [amp, "gate", "--device", "cpu", "--no-cache"]
        command += ["--first-seed", str(METRIC_SEEDS[0]), "--seeds", count, "--max-seeds", count]
        # What it concludes does not matter here.
        subprocess.run([*command, "--precision", ",".join(PRECISIONS), "--json", path])
        report = json.loads(path.read_text())
    for model in report["models"]:
        spread = {}
        for cell in model["cells"]:
            pairs = zip(cell["baseline"], cell["metric"])
            worse = [baseline - own for baseline, own in pairs]
            spread[cell["precision"]] = {
                "mean": round(statistics.mean(worse), 6),
                "sigma": round(statistics.stdev(worse), 6),
            }
        widest = max(figures["sigma"] for figures in spread.values())
        margins["models"][model["model"]] = {
            "margin": round(math.ceil(3 * widest / 0.005) * 0.005, 4),
            "n": len(METRIC_SEEDS),
            "epochs": model["epochs"],
            "spread": spread,
        }


def first_steps(amp, jobs, environment, threads):
    """The jobs' figures, done by one of the gate's processes."""
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    command = [amp, "gate-worker", str(threads)]
    done = subprocess.run(
        command, input=lines, stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def machine(amp, device):
    if device == "cpu":
        return f"{kernel_sets.processor()}: {kernel_sets.DESCRIPTION}"
    report = json.loads(subprocess.check_output([amp, "doctor", "--format", "json"]))
    return report["devices"][0]["name"]


def steps(amp, margins, device):
    # Each seed under one kernel set, each set under as many seeds. A GPU has one set, and is kept
    # busy by several processes.
    sets = kernel_sets.SETS if device == "cpu" else [(None, 1)] * GPU_PROCESSES
    shares = [(at, STEP_SEEDS[at :: len(sets)]) for at in range(len(sets))]

    models = {model: own["epochs"] for model, own in margins["models"].items()} | PLANTED

    def work(share):
        at, seeds = share
        kernels, threads = sets[at]
        environment = dict(os.environ)
        if kernels:
            environment = kernel_sets.environment(kernels, threads)
        jobs = [
            {
                "model": model,
                "precision": precision,
                "seed": seed,
                "epochs": epochs,
                "device": device,
                "tf32": False,
                "deterministic": False,
                "task": "conformance",
                "islands": {},
                "fault": None,
            }
            for seed in seeds
            for model, epochs in models.items()
            for precision in PRECISIONS
        ]
        return list(zip(jobs, first_steps(amp, jobs, environment, threads)))

    with ThreadPoolExecutor(max_workers=2 if device == "cpu" else len(sets)) as pool:
        done = [pair for pairs in pool.map(work, shares) for pair in pairs]
    samples = {}
    for job, outcome in done:
        figures = outcome["conformance"]
        if figures is None:
            sys.exit(f"{job}: {outcome['failures']}")
        own = samples.setdefault(job["model"], {}).setdefault(job["precision"], {})
        for name in ERRORS + DIFFERENCES:
            own.setdefault(name, []).append(figures[name])
    recorded = margins.setdefault("first_steps", {})
    recorded[device] = {
        "device": machine(amp, device),
        "n": len(STEP_SEEDS),
        "models": {
            model: {
                precision: {name: population(name, values) for name, values in figures.items()}
                for precision, figures in precisions.items()
            }
            for model, precisions in samples.items()
        },
    }


def population(name, values):
    if name == "loss_error":
        mean, sigma = 0.0, math.sqrt(statistics.fmean(value * value for value in values))
    else:
        numbers = [value ** (2 / 3) for value in values] if name in ERRORS else values
        mean, sigma = statistics.mean(numbers), statistics.stdev(numbers)
    return {
        "mean": significant(mean),
        "sigma": significant(sigma),
        "most": significant(max(abs(value) for value in values)),
    }


def main():
    amp, what, *device = sys.argv[1:]
    margins = json.loads(PATH.read_text()) if PATH.exists() else {"models": {}}
    margins["recorded_by"] = "tests/record_margins.py"
    if what == "metric":
        metric(amp, margins)
    else:
        steps(amp, margins, *(device or ["cpu"]))
    PATH.write_text(json.dumps(margins, indent=1) + "\n")


if __name__ == "__main__":
    main()
