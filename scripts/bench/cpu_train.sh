#!/usr/bin/env bash
# Measures training steps and predictions of one small model, here and in PyTorch, side by side.
set -euo pipefail
CDPATH='' cd "$(dirname "$0")/../.."
export LC_ALL=C.UTF-8 # a point in numbers, whatever the user's language

usage() {
  cat <<'TEXT'
Usage: scripts/bench/cpu_train.sh [STEPS]

Measures STEPS (5) training steps and predictions of one small model (configs/bench-cpu.yaml), here and in PyTorch as the
public code runs them, side by side, two threads each. BUILD names the build folder (build/release), PYTHON an interpreter
with scripts/fixtures/requirements.txt installed (.venv-fixtures/bin/python). Without PYTHON only this project's side is
measured.
TEXT
}

steps=${1:-5}
case $steps in
  -h | --help) usage && exit 0 ;;
  *[!0-9]* | '') echo "cpu_train.sh: unknown option '$steps'; see --help" >&2 && exit 2 ;;
esac
build=${BUILD:-build/release}
python=${PYTHON:-.venv-fixtures/bin/python}
threads=2
config=configs/bench-cpu.yaml
export OMP_NUM_THREADS=$threads

if [ ! -x "$build/train/hvla-train" ]; then
  cmake --preset release -B "$build" >/dev/null
  cmake --build "$build" --target hvla-train hvla-infer
fi

number() { # KEY, JSON on standard input
  sed -n "s/.*\"$1\": *\([-0-9.e+]*\).*/\1/p"
}

row() { # WHAT OURS THEIRS
  awk -v what="$1" -v ours="$2" -v theirs="$3" 'BEGIN {
    if (theirs == "") printf "%-44s %12.3f %12s %8s\n", what, ours, "-", "-"
    else printf "%-44s %12.3f %12.3f %7.2fx\n", what, ours, theirs, ours / theirs }'
}

theirs() { # ARGUMENTS… of the PyTorch side
  if [ -x "$python" ]; then
    "$python" scripts/bench/torch_cpu_train.py --config configs/bench-cpu.config.json --threads $threads \
      --steps "$steps" "$@" | number samples_per_s
  fi
}

[ -x "$python" ] || echo "no $python: measuring this project's side alone (scripts/fixtures/reference.py says how to set it up)"
printf '%-44s %12s %12s %8s\n' "$threads threads, fp32" "here" "PyTorch" "ratio"

ours=$("$build/train/hvla-train" bench --config $config --set threads=$threads --random-weights --optimizer \
  --steps "$steps" --json)
rate=$(number samples_per_s <<<"$ours")
row "training, samples/s (batch 4, K 4)" "$rate" "$(theirs)"
row "training, samples/s, PyTorch made lean" "$rate" "$(theirs --lean)"

if [ -x "$build/infer/hvla-infer" ]; then
  ours=$("$build/infer/hvla-infer" bench --config $config --threads $threads --random-weights --mode ensemble --json)
  rate=$(number hz <<<"$ours")
  row "prediction (ensemble), 1/s" "$rate" "$(theirs --predict)"
  row "prediction (ensemble), 1/s, PyTorch made lean" "$rate" "$(theirs --predict --lean)"
fi
