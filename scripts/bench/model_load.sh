#!/usr/bin/env bash
# Measures how fast a model is loaded, as hvla-infer bench --load tells it.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
  cat <<'TEXT'
Usage: scripts/bench/model_load.sh [REPEAT]

Makes a model of 407 million parameters below build/model-load (one training step on the shipped demonstrations; 1.6 GB,
and 0.8 GB in bf16), and loads both REPEAT times (5), in turn with a plain sequential read of the same files. The files
are dropped from the system's cache before each. BUILD names the build folder (build/release).
TEXT
}

repeat=5
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    *[!0-9]* | '') echo "model_load: unknown option '$argument'; see --help" >&2 && exit 2 ;;
    *) repeat=$argument ;;
  esac
done
build=${BUILD:-build/release}
work=build/model-load

if [[ ! -d $work/bf16 ]]; then # made last, and whole or not at all
  rm -rf "$work"
  "$build/train/hvla-train" run --config configs/lift-tiny.yaml --set "output=$work/run" \
    --set model.llm.hidden_size=1024 --set model.llm.intermediate_size=4096 --set model.llm.num_hidden_layers=20 \
    --set model.llm.num_attention_heads=16 --set model.llm.num_key_value_heads=16 \
    --set 'train.freeze=["llm_backbone.*", "vision_backbone.*"]' --set train.steps=1 --set train.batch_size=1 \
    --set train.branches=1 --set data.valid_split=null --set validation.interval=0
  rm -rf "$work/run/checkpoints"
  "$build/infer/hvla-infer" export --model "$work/run/model" --out "$work/bf16" --dtype bf16
fi
bench() { "$build/infer/hvla-infer" bench --load --repeat "$repeat" "$@"; }
echo "fp32 to fp32"
bench --model "$work/run/model"
echo "bf16 to bf16"
bench --model "$work/bf16" --dtype bf16
echo "bf16 to fp32"
bench --model "$work/bf16"
