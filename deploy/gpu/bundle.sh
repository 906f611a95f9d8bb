#!/usr/bin/env bash
# Packs what `make gpu` needs on a machine without network: deploy/gpu.md. Run in a clone, on a machine with one.
#   deploy/gpu/bundle.sh [OUT]        the tree and the wheels, into OUT (default build/gpu-bundle)
#   deploy/gpu/bundle.sh --tree [OUT] the tree alone
# PYTHON_VERSION (3.12) is that of the other machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree_only=
if [[ "${1:-}" == --tree ]]; then tree_only=1; shift; fi
out=${1:-build/gpu-bundle}
mkdir -p "$out"

# What no step reads: the scorer and the gallery of the evaluation, and images of documents.
git archive --format=tar HEAD -- . \
  ':(exclude)models/weights/*/scorer/*' ':(exclude)models/weights/*/gallery.*' \
  ':(exclude)docs/*.png' ':(exclude)docs/images/*' | gzip -n > "$out/tree.tar.gz"
cp deploy/gpu/run.sh "$out/run.sh"

if [[ -z "$tree_only" ]]; then
  mkdir -p "$out/wheels"
  platforms=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${tag}_x86_64")
  done
  grep -v '^#' deploy/gpu/packages.txt | while read -r name; do
    pin=$(grep -m 1 -o "^$name==[^ ;]*" requirements/dev.txt)
    python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
      --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --dest "$out/wheels" "$pin"
  done
fi
du -ch "$out"/* | sed 's/^/  /'
