#!/usr/bin/env bash
# scripts/plot_curves.sh draws whatever curves the metrics of a run contain, and says why if it cannot draw.
set -euo pipefail
for program in jq gnuplot; do
  if ! command -v $program >/dev/null; then
    echo "skipped: $program is not installed"
    exit 77
  fi
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

# is_picture FILE WIDTH: fails unless the file is a PNG of this width (bytes 17 to 20 of the file).
is_picture() {
  [[ $(head -c 8 "$1" | od -An -tx1 | tr -d ' ') == 89504e470d0a1a0a ]] || fail "$1 is no PNG"
  local width=$((16#$(tail -c +17 "$1" | head -c 4 | od -An -tx1 | tr -d ' ')))
  ((width == $2)) || fail "$1 is $width pixels wide, not $2"
}

# A hybrid run with held-out lines: three panels.
mkdir "$folder/hybrid"
for step in 10 20 30 40; do
  errors=
  if ((step % 20 == 0)); then
    errors=', "held_out_loss": 5.5, "held_out_loss_diffusion": 0.5, "held_out_loss_ce": 5.0'
    for who in diffusion autoregressive ensemble mean_action; do
      errors+=", \"error_$who\": 0.4, \"error_${who}_dims\": [0.3, 0.5]"
    done
  fi
  echo "{\"step\": $step, \"loss\": 6.0, \"loss_diffusion\": 0.9, \"loss_ce\": 5.1$errors}"
done >"$folder/hybrid/metrics.jsonl"
scripts/plot_curves.sh "$folder/hybrid" >"$folder/said"
[[ $(cat "$folder/said") == "$folder/hybrid/curves.png" ]] || fail "it said: $(cat "$folder/said")"
is_picture "$folder/hybrid/curves.png" 1560
mkdir "$folder/a user's files"
TMPDIR="$folder/a user's files" \
  scripts/plot_curves.sh "$folder/hybrid" --dims 1 --out "$folder/elsewhere.png" >/dev/null
is_picture "$folder/elsewhere.png" 1560

# A run without validation: two panels. Losses that are not finite are null.
mkdir "$folder/plain"
printf '{"step": %d, "loss": 1.0, "loss_diffusion": %s, "loss_ce": 0.5}\n' 1 0.5 2 null 3 0.4 >"$folder/plain/metrics.jsonl"
scripts/plot_curves.sh "$folder/plain" >/dev/null
is_picture "$folder/plain/curves.png" 1040

# expect_error WORDS ARGUMENT…
expect_error() {
  local words=$1 code=0
  shift
  scripts/plot_curves.sh "$@" >/dev/null 2>"$folder/error" || code=$?
  ((code == 2)) || fail "plot_curves.sh $*: exit code $code, not 2"
  grep -qF -- "$words" "$folder/error" || fail "plot_curves.sh $*: the message lacks '$words': $(cat "$folder/error")"
}
mkdir "$folder/empty"
: >"$folder/empty/metrics.jsonl"
expect_error "no step yet" "$folder/empty"
expect_error "metrics.jsonl: is $folder/absent the directory of a run" "$folder/absent"
expect_error "unknown option --dim" "$folder/hybrid" --dim 1
expect_error "--out needs a value" "$folder/hybrid" --out
expect_error "--dims is x" "$folder/hybrid" --dims x
expect_error "--dims names 2, actions have dimensions 0 to 1" "$folder/hybrid" --dims 0,2
echo "pictures and messages are right"
