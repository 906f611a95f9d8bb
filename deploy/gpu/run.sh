#!/usr/bin/env bash
# Unpacks a bundle of deploy/gpu/bundle.sh beside it and runs `make gpu` there, without network: deploy/gpu.md.
# PYTHON (python3) is an interpreter with torch for CUDA, torchvision and pytest.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
mkdir -p safelight
tar -xzf tree.tar.gz -C safelight
if compgen -G 'wheels/*.whl' > /dev/null; then
  # What the interpreter has already is installed beside it, in the version that was tested.
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
fi
cd safelight
export PYTHONPATH="$PWD/../site:$PWD/src:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec "$python" -m tests.gpu
