#!/usr/bin/env python3
"""Measures σ_d, the spread over seeds of 32-true's metric less each precision's, and the distance of
the first steps from 32-true ones; writes fixtures/margins.json.

A model's margin δ is three times its widest σ_d, rounded up to half a percentage point; the gate
prints the power that its seeds have against it. The margins in fixtures/src/models/mod.rs are
these; a test holds them together. Takes ten minutes on two cores.
Usage, from the checkout, after `cargo amp gate` has built the binary:

    python3 tests/record_margins.py target/debug/amp
"""

import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

SEEDS = 10
PRECISIONS = ["16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true"]
FIGURES = ["gradient_error", "loss_error", "update_error", "update_bias", "norm_bias"]


def measure(amp):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "gate.json"
        command = [amp, "gate", "--device", "cpu", "--no-cache", "--first-seed", "100"]
        command += ["--seeds", str(SEEDS), "--max-seeds", str(SEEDS)]
        # What it concludes does not matter here.
        subprocess.run([*command, "--precision", ",".join(PRECISIONS), "--json", path])
        return json.loads(path.read_text())


def main():
    report = measure(sys.argv[1])
    models, steps = {}, {}
    for model in report["models"]:
        spread = {}
        for cell in model["cells"]:
            pairs = zip(cell["baseline"], cell["metric"])
            worse = [baseline - own for baseline, own in pairs]
            spread[cell["precision"]] = {
                "mean": round(statistics.mean(worse), 6),
                "sigma": round(statistics.stdev(worse), 6),
            }
            own = steps.setdefault(cell["precision"], dict.fromkeys(FIGURES, 0.0))
            for name in FIGURES:
                own[name] = max(own[name], float(f"{abs(cell['conformance'][name]):.3g}"))
        widest = max(figures["sigma"] for figures in spread.values())
        models[model["model"]] = {
            "margin": round(math.ceil(3 * widest / 0.005) * 0.005, 4),
            "n": SEEDS,
            "epochs": model["epochs"],
            "spread": spread,
        }
    margins = {"recorded_by": "tests/record_margins.py", "models": models, "first_steps": steps}
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "margins.json"
    path.write_text(json.dumps(margins, indent=1) + "\n")


if __name__ == "__main__":
    main()
