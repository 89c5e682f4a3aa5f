"""Reads a folder of MLflow's file store with MLflow's own client and prints its runs as one JSON list, of

{"experiment": name, "name": name, "status": status, "ended": bool, "params": {}, "tags": {}, "artifacts": [path],
"metrics": {key: [[step, value], ...]}}

`cargo amp test` installs the packages into .amp/python; tests/tests/trackers.rs runs this.
"""

import json
import os
import pathlib
import sys

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"

from mlflow.tracking import MlflowClient  # noqa: E402

folder = pathlib.Path(sys.argv[1])
client = MlflowClient(folder.as_uri())


def artifacts(run, path=None):
    for entry in client.list_artifacts(run.info.run_id, path):
        yield from artifacts(run, entry.path) if entry.is_dir else [entry.path]


def read(experiment, run):
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        "experiment": experiment.name,
        "name": run.info.run_name,
        "status": run.info.status,
        "ended": run.info.end_time is not None,
        "params": run.data.params,
        "tags": run.data.tags,
        "artifacts": sorted(artifacts(run)),
        "metrics": {key: [[metric.step, metric.value] for metric in metrics] for key, metrics in history.items()},
    }


runs = [
    read(experiment, run)
    for experiment in client.search_experiments()
    for run in client.search_runs([experiment.experiment_id])
]
print(json.dumps(runs))
