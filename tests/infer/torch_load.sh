#!/usr/bin/env bash
# torch_load.sh BUILD-DIRECTORY: PyTorch (with weights_only) and the safetensors package read the same bits that
# hvla-infer exports. Python is $PYTHON, or that of the fixtures' environment (scripts/fixtures/requirements.txt).
# Skipped (77) without torch.
set -euo pipefail
build=$1
python=${PYTHON:-.venv-fixtures/bin/python}
if ! "$python" -c 'import torch, safetensors.torch' 2>/dev/null; then
  echo "skipped: $python has no torch and safetensors"
  exit 77
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/hvla-torch-XXXXXX")
trap 'rm -rf "$work"' EXIT

"$build/tests/infer/make_tiny_directory" "$work/model"
for dtype in auto bf16 fp16; do
  "$build/infer/hvla-infer" export --model "$work/model" --out "$work/pt-$dtype" --format public-pt --dtype "$dtype" \
    --verify >"$work/log"
  grep -q '^verified: ' "$work/log"
  "$python" tests/infer/torch_load.py "$work/model" "$work/pt-$dtype"
done
"$build/infer/hvla-infer" export --model "$work/model" --out "$work/shards" --dtype fp16 --shard-size 500000 >"$work/log"
"$python" tests/infer/torch_load.py "$work/model" "$work/shards"
