#!/usr/bin/env bash
# clang_tidy.sh BUILD-DIRECTORY NODES: the checks in .clang-tidy find nothing in the tracked sources. The analyzer,
# which takes nearly all of the time, explores up to NODES states of each function; its own default is 225000.
set -euo pipefail
source tests/lint/common.sh
need clang-tidy-14
need jq
build=$1
export nodes=$2
work=$build/clang-tidy-$nodes
rm -rf "$work"
mkdir -p "$work"

# One command for each file (the CPU's kernels are compiled twice, CUDA sources also by nvcc), which includes
# analyzer.h, except for core/base/status.c, which defines the functions that analyzer.h wraps.
tracked_sources | jq -R . | jq -s . >"$work/tracked.json"
jq --arg root "$PWD/" --arg header "$PWD/tests/lint/analyzer.h" --slurpfile tracked "$work/tracked.json" '
  map(select((.command | test("^[^ ]*nvcc ") | not)
             and (.file | ltrimstr($root) | IN($tracked[0][]))))
  | unique_by(.file)
  | map(if .file | endswith("core/base/status.c") then . else .command += " -include " + ($header | @sh) end)' \
  "$build/compile_commands.json" >"$work/compile_commands.json"

count=$(jq length "$work/compile_commands.json")
((count > 0)) || fail "$build/compile_commands.json names no tracked source"
# One file for each process, because with more the analyzer forgets va_start. Kernels are not analyzed, which would take
# minutes for the emulator's templates; the emulator finds such faults while they run.
tidy() {
  local kernels=() argument depth=()
  for argument in -Xclang -analyzer-config -Xclang "max-nodes=$nodes"; do depth+=("--extra-arg=$argument"); done
  if [[ $2 == *.cu ]]; then kernels=(--checks='-clang-analyzer-*'); fi
  clang-tidy-14 -p "$1" --quiet "${kernels[@]}" "${depth[@]}" "$2"
}
export -f tidy
if ! jq -r '.[].file' "$work/compile_commands.json" |
  xargs -P "$(nproc)" -I '{}' bash -c 'tidy "$@"' tidy "$work" '{}' 2>"$work/stderr.txt"; then
  grep -vE '^[0-9]+ warnings? (generated|treated)' "$work/stderr.txt" >&2 || true
  fail "clang-tidy-14 found something; by hand: clang-tidy-14 -p $build FILE…"
fi
echo "$count files are tidy"
