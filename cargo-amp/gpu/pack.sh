#!/usr/bin/env bash
# Packs what a GPU machine without Rust needs into dist/: the amp binary, the test binaries, the
# benches, the data and run.sh. Usage: cargo-amp/gpu/pack.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cargo amp setup
rm -rf dist.partial
mkdir -p dist.partial/tests dist.partial/benches

# Lists the executables that cargo has just built: name and path.
executables() {
    cargo "$@" --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["package_id"].rsplit("/", 1)[-1].split("#")[0], message["target"]["name"],
              message["executable"])
'
}

# As users run it, since it measures as well.
executables build --release --bin amp | while read -r _ _ path; do
    strip --strip-all -o dist.partial/amp "$path"
done
# Left out: what needs a compiler (ui, expand), TensorBoard's Python package (tensorboard) or the
# sources (docs).
executables test --no-run --package amp-core --package amp-verify --package fixtures --package tests |
    while read -r package target path; do
        case $target in ui | expand | tensorboard | docs | amp) continue ;; esac
        strip --strip-all -o "dist.partial/tests/$package-$target" "$path"
    done
# In the tests' profile, so that the C++ bindings are not built again.
executables build --package tests --benches | while read -r _ target path; do
    strip --strip-all -o "dist.partial/benches/$target" "$path"
done
mkdir -p dist.partial/fixtures dist.partial/record
cp -r fixtures/data fixtures/margins.json dist.partial/fixtures/
cp tests/kernel_sets.py tests/record_margins.py dist.partial/record/
cp -r tests/tests/goldens dist.partial/
cp cargo-amp/gpu/run.sh dist.partial/
rm -rf dist
mv dist.partial dist
du -sh dist
