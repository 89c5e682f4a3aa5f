#!/usr/bin/env bash
# Runs packed binaries on a machine with a GPU and Python's torch 2.11.0, but without Rust.
# Usage, from the packed folder:
#   ./run.sh test [filter…]     the tests, on CUDA
#   ./run.sh criterion [name]   a benchmark of tests/benches, on CUDA: loader unless another is named
#   ./run.sh golden-record      goldens and anchors of this GPU's compute capability, into goldens/:
#                               copy them to tests/tests/goldens; an anchor that is there stays
#   ./run.sh record-steps       the spread of unchanged first steps on this GPU, into
#                               fixtures/margins.json: copy it to fixtures
#   ./run.sh <command> [args…]  any command of the amp binary, as in ./run.sh verify --device cuda
#                               or ./run.sh bench --peers
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

site=$(python3 - <<'PY'
import importlib.util, pathlib, sys
spec = importlib.util.find_spec("torch")
if spec is None:
    sys.exit("error: python3 has no torch: pip install torch==2.11.0")
folder = pathlib.Path(spec.origin).parent
version = {}
exec((folder / "version.py").read_text(), version)
if not version["__version__"].startswith("2.11.0"):
    sys.exit(f"error: torch is {version['__version__']}, but 2.11.0 is needed: pip install torch==2.11.0")
print(folder.parent)
PY
)
libraries="$site/torch/lib"
for folder in "$site"/nvidia/*/lib "$site"/nvidia/*/*/lib; do
    [[ -d $folder ]] && libraries+=":$folder"
done
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export AMP_DATA="$here/fixtures/data" AMP_BINARY="$here/amp"

if [[ ${1:-} == criterion ]]; then
    export AMP_DEVICE=cuda
    exec "$here/benches/${2:-loader}" --bench
fi
# One at a time: a CUDA device's memory statistics are the process's. The workspace makes cuBLAS
# deterministic, which goldens on CUDA ask for.
packed_tests() {
    export AMP_DEVICE=cuda RUST_TEST_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
    export AMP_GOLDENS="$here/goldens" INSTA_WORKSPACE_ROOT="$here"
}
if [[ ${1:-} == golden-record ]]; then
    packed_tests
    export INSTA_UPDATE=always AMP_ANCHORS=write
    unset CI
    for binary in "$here"/tests/tests-golden "$here"/tests/tests-own_model; do
        "$binary"
    done
    exec ls "$here"/goldens
fi
if [[ ${1:-} == record-steps ]]; then
    exec python3 "$here/record/record_margins.py" "$here/amp" steps cuda
fi
if [[ ${1:-} != test ]]; then
    exec "$here/amp" "$@"
fi
shift
packed_tests
export INSTA_UPDATE=no
failed=()
for binary in "$here"/tests/*; do
    echo "== $(basename "$binary")"
    "$binary" "$@" || failed+=("$(basename "$binary")")
done
if ((${#failed[@]})); then
    echo "error: failed in ${failed[*]}" >&2
    exit 1
fi
