#!/usr/bin/env bash
# Runs packed binaries on a machine with a GPU and Python's torch 2.11.0, but without Rust.
# Usage, from any folder:
#   run.sh <command> [arguments]     any command of the amp binary, as in: run.sh verify --device cuda
#   run.sh test [filter…]            all packed tests, on CUDA
#   run.sh golden-record [binary…]   runs these test binaries, or all, and writes the goldens and
#                                    anchors of this GPU's compute capability that are missing into
#                                    goldens/<package>: copy them to tests/goldens of that package.
#                                    An anchor that is there is kept.
#   run.sh criterion [benchmark]     a packed benchmark, on CUDA; its name is needed if there are
#                                    several
# AMP_DEVICE names another device for tests and benchmarks.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "error: $*" >&2
    exit 2
}

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
) || exit 2
libraries="$site/torch/lib"
for folder in "$site"/nvidia/*/lib "$site"/nvidia/*/*/lib; do
    [[ -d $folder ]] && libraries+=":$folder"
done
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The project's files are looked for here, at their paths in the package's folder.
export AMP_PROJECT="$here" AMP_BINARY="$here/bin/amp"

# The packed executables of a kind, tests or benches: <package>/<target>. With names, these alone.
packed() {
    local kind=$1 name path
    shift
    [[ -d $here/bin/$kind ]] || fail "no $kind were packed: pack without --bin-only"
    (($#)) || set -- '*'
    for name in "$@"; do
        local found=()
        for path in "$here/bin/$kind"/*/$name; do
            [[ -x $path ]] && found+=("${path#"$here/bin/$kind/"}")
        done
        ((${#found[@]})) || fail "there is no $name in $here/bin/$kind"
        printf '%s\n' "${found[@]}"
    done
}

# run_tests BINARIES [arguments…]: every binary, as cargo runs it: in the package's folder, with the
# goldens of its package. The workspace makes cuBLAS deterministic, which goldens on CUDA ask for.
run_tests() {
    local binaries=$1 failed=() binary
    shift
    # One at a time: a CUDA device's memory statistics are the process's.
    export AMP_DEVICE=${AMP_DEVICE:-cuda} RUST_TEST_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
    export INSTA_WORKSPACE_ROOT="$here"
    cd "$here"
    for binary in $binaries; do
        echo "== $binary"
        AMP_GOLDENS="$here/goldens/${binary%/*}" "$here/bin/tests/$binary" "$@" || failed+=("$binary")
    done
    if ((${#failed[@]})); then
        echo "error: failed in ${failed[*]}" >&2
        return 1
    fi
}

case ${1:-} in
test)
    shift
    binaries=$(packed tests)
    export INSTA_UPDATE=no
    run_tests "$binaries" "$@"
    ;;
golden-record)
    shift
    binaries=$(packed tests "$@")
    for binary in $binaries; do
        mkdir -p "$here/goldens/${binary%/*}"
    done
    unset CI
    export INSTA_UPDATE=always AMP_ANCHORS=write
    run_tests "$binaries"
    ls "$here"/goldens/*
    ;;
criterion)
    benchmarks=$(packed benches ${2:+"$2"})
    [[ $benchmarks != *$'\n'* ]] || fail "say which benchmark: ${benchmarks//$'\n'/, }"
    export AMP_DEVICE=${AMP_DEVICE:-cuda}
    exec "$here/bin/benches/$benchmarks" --bench
    ;;
*)
    exec "$here/bin/amp" "$@"
    ;;
esac
