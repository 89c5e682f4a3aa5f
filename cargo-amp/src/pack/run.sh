#!/usr/bin/env bash
# Runs packed binaries on a machine with a GPU and Python's torch 2.11.0, but without Rust.
# Usage, from any folder:
#   run.sh <command> [arguments]     any command of the amp binary, as in: run.sh verify --device cuda
#   run.sh test [filter…]            all packed tests, on CUDA; with --include-ignored also those that
#                                    are ignored because they need a GPU
#   run.sh golden-record [binary…]   runs these test binaries, or all, and writes the goldens of this
#                                    GPU's compute capability and their missing anchors (the results of
#                                    the first recording) into the packages' tests/goldens: copy the
#                                    files to the same paths of the workspace. An existing anchor is
#                                    kept.
#   run.sh criterion [benchmark]     a packed benchmark, on CUDA; its name is needed if there are
#                                    several
# AMP_DEVICE sets another device for tests and benchmarks.
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

# The folder of a package, which has the same path as in the workspace. bin/packages has a line
# `<name> <path>` for each package; the first line is the package of the amp binary.
folder_of() {
    local name path
    while read -r name path; do
        if [[ $name == "$1" || -z $1 ]]; then
            echo "$here${path:+/$path}"
            return
        fi
    done <"$here/bin/packages"
}
AMP_PROJECT=$(folder_of "")
export AMP_PROJECT AMP_BINARY="$here/bin/amp"

# The packed executables of a kind (tests or benches) as <package>/<target>. If names are given, only the
# executables with these names.
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

# run_tests BINARIES [arguments…]: runs each binary as cargo does, in the folder of its package, with
# the package's goldens. CUBLAS_WORKSPACE_CONFIG makes cuBLAS deterministic, which goldens on CUDA need.
run_tests() {
    local binaries=$1 failed=() binary folder
    shift
    # One test at a time, because a CUDA device counts memory for the whole process.
    export AMP_DEVICE=${AMP_DEVICE:-cuda} RUST_TEST_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
    export INSTA_WORKSPACE_ROOT="$here"
    for binary in $binaries; do
        echo "== $binary"
        folder=$(folder_of "${binary%/*}")
        mkdir -p "$folder"
        (cd "$folder" && AMP_GOLDENS="$folder/tests/goldens" "$here/bin/tests/$binary" "$@") ||
            failed+=("$binary")
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
    goldens=()
    for binary in $binaries; do
        goldens+=("$(folder_of "${binary%/*}")/tests/goldens")
    done
    mkdir -p "${goldens[@]}"
    unset CI
    export INSTA_UPDATE=always AMP_ANCHORS=write
    run_tests "$binaries"
    printf '%s\n' "${goldens[@]}" | sort -u | xargs -d '\n' ls
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
