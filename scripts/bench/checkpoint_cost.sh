#!/usr/bin/env bash
# Measures what writing checkpoints in the background costs training, in processor time, which is what other work on the
# machine disturbs least; on one thread nothing but the disk is waited for beside it.
set -euo pipefail
export LC_ALL=C.UTF-8 # a point in numbers, whatever the user's language
CDPATH='' cd "$(dirname "$0")/../.."

usage() {
  cat <<'TEXT'
Usage: scripts/bench/checkpoint_cost.sh [ROUNDS]

Measures what writing checkpoints in the background costs training, in processor time: the copy, the checksums, the
writing, the model made anew. Each of ROUNDS rounds (5) trains configs/lift-tiny.yaml three times on one thread: 10
steps, 60 steps, and 60 steps with a checkpoint after every tenth, five more than without. The differences give the cost
of a step and of a checkpoint; the last line has the medians over the rounds. BUILD names the build folder
(build/release), RUNS where run directories go (a temporary folder).
TEXT
}

rounds=${1:-5}
case $rounds in
  -h | --help) usage && exit 0 ;;
  *[!0-9]* | '') echo "checkpoint_cost.sh: unknown option '$rounds'; see --help" >&2 && exit 2 ;;
esac
build=${BUILD:-build/release}
runs=${RUNS:-$(mktemp -d)}
rows=$(mktemp)
trap 'rm -rf "$runs/run" "$rows"; [[ -n ${RUNS:-} ]] || rmdir "$runs"' EXIT
TIMEFORMAT='%U %S'

processor_seconds() { # STEPS INTERVAL
  rm -rf "$runs/run"
  { time "$build/train/hvla-train" run --config configs/lift-tiny.yaml --set output="$runs/run" --set threads=1 \
    --set train.steps="$1" --set checkpoint.interval="$2" --set data.valid_split=null --set log_interval=100 \
    2>/dev/null; } 2>&1 | awk '{ print $1 + $2 }'
}

echo "processor seconds of   a step   a checkpoint   one checkpoint in 100 steps"
for ((round = 0; round < rounds; round++)); do
  echo "$(processor_seconds 10 0) $(processor_seconds 60 0) $(processor_seconds 60 10)" |
    awk '{ step = ($2 - $1) / 50; checkpoint = ($3 - $2) / 5; print step, checkpoint, checkpoint / (100 * step) }' |
    tee -a "$rows" | awk '{ printf "%29.4f%15.4f%14.2f %%\n", $1, $2, 100 * $3 }'
done

median() { # of a column
  awk -v column="$1" '{ print $column }' "$rows" | sort -g |
    awk '{ x[NR] = $1 } END { print NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2 }'
}
awk -v step="$(median 1)" -v checkpoint="$(median 2)" -v cost="$(median 3)" \
  'BEGIN { printf "median%23.4f%15.4f%14.2f %%\n", step, checkpoint, 100 * cost }'
