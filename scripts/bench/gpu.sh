#!/usr/bin/env bash
# Training steps and predictions of one model on one card, here and in plain PyTorch as the public code runs them, in turn.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export LC_ALL=C.UTF-8

usage() {
  cat <<'TEXT'
Usage: scripts/bench/gpu.sh [--config FILE] [--batch N] [--repeats N] [--device NAME] [--out DIR]

Measures `hvla-train bench` and `hvla-infer bench` with random weights (the model of configs/7b.yaml, batch 32; always
K = 4, a prompt of 26 tokens, bf16) and scripts/bench/torch_gpu.py on the same card in the same run, and prints both
with their ratio: training without the optimizer, with every block recomputed (PyTorch: activation checkpointing) and
with norms, SwiGLU and rotary alone recomputed (PyTorch: no checkpointing), with the optimizer (118 GB for
configs/7b.yaml, by forecast), and predictions of each mode; on cuda also without launches that begin early and without
cuDNN (docs/performance.md).
DIR (default bench-gpu) keeps every JSON object and the card's and driver's names.

A part that fails is reported and left out; the others run, and the exit code is 1. BUILD names the build folder
(build/release), PYTHON an interpreter with torch (python3). --device cpu --config configs/bench-cpu.yaml --batch 4
shows that the script works.
TEXT
}

config=configs/7b.yaml batch=32 repeats=5 device=cuda out=bench-gpu
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --config | --batch | --repeats | --device | --out)
      (($# > 1)) || { echo "gpu.sh: $1 needs a value" >&2 && exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    *) echo "gpu.sh: unknown option '$1'; see scripts/bench/gpu.sh --help" >&2 && exit 2 ;;
  esac
done
for count in "$batch" "$repeats"; do
  [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "gpu.sh: --batch and --repeats are numbers from 1 on, not '$count'" >&2 && exit 2; }
done
build=${BUILD:-build/release} python=${PYTHON:-python3} failed=0
mkdir -p "$out"

number() { # KEY FILE: the number under the last KEY
  sed -n "s/.*\"$1\": *\([-0-9.e+]*\).*/\1/p" "$2" 2>/dev/null || true
}

measure() { # NAME COMMAND…: its JSON goes to $out/NAME.json
  local name=$1
  shift
  if ! "$@" >"$out/$name.json" 2>"$out/$name.log"; then
    echo "$name failed: $(tail -n 1 "$out/$name.log")" >&2
    rm -f "$out/$name.json"
    failed=1
  fi
}

ours() { # NAME RECOMPUTE ARGUMENTS…
  local name=$1 recompute=$2
  shift 2
  measure "$name" "$build/train/hvla-train" bench --config "$config" --random-weights --batch "$batch" \
    --steps "$repeats" --device "$device" --json --set "train.recompute=$recompute" \
    --set dtype=bf16 --set train.branches=4 --set bench.prompt_tokens=26 "$@"
}

theirs() { # NAME ARGUMENTS…
  local name=$1
  shift
  measure "$name" "$python" scripts/bench/torch_gpu.py --config "$out/model.json" --device "$device" \
    --batch "$batch" --repeats "$repeats" "$@"
}

row() { # WHAT UNIT KEY OURS THEIRS MORE-IS-BETTER
  awk -v what="$1" -v unit="$2" -v ours="$(number "$3" "$out/$4.json")" -v theirs="$(number "$3" "$out/$5.json")" \
    -v more="$6" -v light="$(number speed_of_light "$out/$4.json")" 'BEGIN {
      ratio = ours != "" && theirs != "" ? sprintf("%.2fx", more ? ours / theirs : theirs / ours) : "-"
      printf "%-52s %-10s %10s %10s %8s %8s\n", what, unit, ours == "" ? "-" : sprintf("%.2f", ours),
        theirs == "" ? "-" : sprintf("%.2f", theirs), ratio, light == "" ? "-" : sprintf("%.0f %%", 100 * light) }'
}

"$build/train/hvla-train" config --config "$config" --json >"$out/model.json"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/card.txt"
fi

ours train-block block
theirs torch-block --checkpointing
ours train-cheap cheap
theirs torch-none --no-checkpointing
ours train-optimizer block --optimizer
predict() { # NAME MODE VARIABLE=VALUE…
  local name=$1 mode=$2
  shift 2
  measure "$name" env "$@" "$build/infer/hvla-infer" bench --config "$config" --random-weights --mode "$mode" \
    --device "$device" --dtype bf16 --json
}
for mode in diffusion autoregressive ensemble; do
  predict "predict-$mode" $mode
  theirs "torch-$mode" --predict $mode
done
if [[ $device == cuda ]]; then
  predict predict-late ensemble HVLA_EARLY=0
  predict predict-own-attention ensemble HVLA_CUDNN=0
fi

printf '\n%-52s %-10s %10s %10s %8s %8s\n' "$config, batch $batch" "" here PyTorch ratio "of light"
row "training, blocks recomputed" samples/s samples_per_s train-block torch-block 1
row "training, cheap parts recomputed (PyTorch: nothing)" samples/s samples_per_s train-cheap torch-none 1
row "training with the optimizer (here alone)" samples/s samples_per_s train-optimizer none 1
for mode in diffusion autoregressive ensemble; do
  row "prediction, $mode" ms median "predict-$mode" "torch-$mode" 0
done
if [[ $device == cuda ]]; then
  row "  ensemble, HVLA_EARLY=0" ms median predict-late torch-ensemble 0
  row "  ensemble, HVLA_CUDNN=0" ms median predict-own-attention torch-ensemble 0
fi
exit "$failed"
