#!/usr/bin/env bash
# From a fresh clone to a trained policy: see the usage.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8 # a point in numbers, whatever the user's language
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT-10000} # docs/performance.md: processors that other work uses, too

usage() {
  cat <<'TEXT'
Usage: scripts/quickstart.sh

Installs packages, builds, trains a tiny HybridVLA on ten shipped demonstrations of a robot arm that lifts a cube
(configs/lift-tiny.yaml), asks it for the action of a frame it has not seen, with each head and with both, and shows
how well it does on the two demonstrations that were held out. Takes less than ten minutes on two cores, without a GPU.
Everything it makes lies in build/ and runs/quickstart/.
TEXT
}

case ${1:-} in
  '') ;;
  -h | --help) usage && exit 0 ;;
  *) echo "quickstart: unknown option '$1'; see scripts/quickstart.sh --help" >&2 && exit 2 ;;
esac

run=runs/quickstart
bin=build/release
demos=data/demos/lift.hdf5
episode=demo_10 frame=5 # one of the held-out episodes: the arm is on its way down to the cube
dims=0,1,2,6            # x, y, z, gripper

stage_start=0
stage() {
  stage_start=$SECONDS
  printf '\n== %s\n' "$*"
}
took() { printf '   %s in %d s\n' "$1" $((SECONDS - stage_start)); }

stage "1/6 installing what is missing"
scripts/setup.sh
took "done"

stage "2/6 building the programs into $bin"
mkdir -p build
if ! { cmake --preset release && cmake --build --preset release --target hvla-data hvla-train hvla-infer; } \
  >build/quickstart.log 2>&1; then
  tail -n 40 build/quickstart.log >&2
  echo "quickstart: the build failed; all of its output is in build/quickstart.log" >&2
  exit 1
fi
took "built"

stage "3/6 looking at the demonstrations: $demos"
rm -rf $run
mkdir -p $run
$bin/data/hvla-data inspect $demos --picture $run/demonstrations.png | grep -vE '^(file|layout|warnings)'
took "frames of the first one drawn to $run/demonstrations.png,"

stage "4/6 training a tiny HybridVLA from nothing, configs/lift-tiny.yaml: the long part, one to six minutes"
$bin/train/hvla-train run --config configs/lift-tiny.yaml --set output=$run
took "trained"

stage "5/6 predicting for frame $frame of $episode, which it has not seen"
observed=$($bin/data/hvla-data frame $demos --episode $episode --frame $frame --json \
  --camera agentview_image --out $run/front.png)
$bin/data/hvla-data frame $demos --episode $episode --frame $frame \
  --camera robot0_eye_in_hand_image --out $run/wrist.png >/dev/null
state=$(jq -r '.state | map(tostring) | join(",")' <<<"$observed")
printf '   %-16s %8s %8s %8s %8s %8s %8s %8s\n' '' x y z 'rot x' 'rot y' 'rot z' gripper
row() {
  local name=$1
  shift
  # shellcheck disable=SC2046,SC2183
  printf '   %-16s %8.3f %8.3f %8.3f %8.3f %8.3f %8.3f %8.3f' "$name" $(jq -r "$1 | .[]")
}
row demonstrated .action <<<"$observed"
echo
for mode in diffusion autoregressive ensemble; do
  answer=$($bin/infer/hvla-infer predict --model $run/model --image front=$run/front.png --image wrist=$run/wrist.png \
    --instruction "lift the cube" --state "$state" --mode $mode --json)
  row $mode '.action[0]' <<<"$answer"
  jq -r '"   " + (.timing_ms.total * 10 | round / 10 | tostring) + " ms"
    + (if .confidence then ", confidence " + (.confidence * 100 | round / 100 | tostring) else "" end)' <<<"$answer"
done
took "predicted"

stage "6/6 mean absolute errors on the two held-out demonstrations, normalised (the actions' range is 2)"
echo "   together: x, y, z and gripper; this task needs no rotation, what the file has there is noise"
# The last line of the run that measured held-out frames; errors and their ratio to always saying the mean action.
jq -rs --argjson dims "[$dims]" '
  def mean: add / length;
  map(select(.held_out_loss != null)) | last
  | . as $line | ($line.error_mean_action_dims | [.[$dims[]]] | mean) as $base
  | ("diffusion", "autoregressive", "ensemble", "mean_action") as $who
  | $line["error_" + $who + "_dims"] as $all | ([$all[$dims[]]] | mean) as $error
  | [$who, $error, $error / $base, $all[]] | @tsv' $run/metrics.jsonl |
  awk -F '\t' '
    BEGIN { printf "   %-15s %10s %9s |", "", "together", "vs mean"
            n = split("x y z rot_x rot_y rot_z gripper", names, " ")
            for (i = 1; i <= n; i++) printf " %7s", names[i]
            print "" }
    { sub("_", " ", $1); printf "   %-15s %10.3f %8.0f%% |", $1, $2, 100 * $3
      for (i = 4; i <= NF; i++) printf " %7.3f", $i
      print "" }'
curves=$(scripts/plot_curves.sh $run --dims $dims)
took "loss curves drawn to $curves,"

cat <<TEXT

All done in $((SECONDS / 60)) min $((SECONDS % 60)) s. What to do next:
  look at the curves              $curves
  train longer, or change a key   $bin/train/hvla-train run --config configs/lift-tiny.yaml --set train.steps=2000 --set output=runs/longer
  train on your own files         README.md, "Your own demonstrations"
  ask for more actions            $bin/infer/hvla-infer predict --help
  use it from a C program         infer/hvla.h
TEXT
