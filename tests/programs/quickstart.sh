#!/usr/bin/env bash
# scripts/quickstart.sh ends with 0 and leaves its picture, and both heads have learned to act: on held-out frames, over
# x, y, z and gripper together, the error of each is at most 0.6 of that of always taking the mean action.
set -euo pipefail

fail() {
  echo "$*" >&2
  exit 1
}

scripts/quickstart.sh </dev/null
for picture in demonstrations front wrist curves; do
  [[ -s runs/quickstart/$picture.png ]] || fail "runs/quickstart/$picture.png is missing"
done
jq -es '
  def over: [.[0, 1, 2, 6]] | add / 4;
  map(select(.held_out_loss != null)) | last | (.error_mean_action_dims | over) as $mean
  | ((.error_diffusion_dims | over) / $mean) as $diffusion
  | ((.error_autoregressive_dims | over) / $mean) as $autoregressive
  | ("diffusion \($diffusion), autoregressive \($autoregressive) of the mean action" | debug)
  | $diffusion <= 0.6 and $autoregressive <= 0.6' runs/quickstart/metrics.jsonl ||
  fail "a head has not learned: its error is above 0.6 of the mean action's"
