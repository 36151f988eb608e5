#!/usr/bin/env bash
# clang_tidy.sh BUILD-DIRECTORY NODES: no tracked source draws a warning of .clang-tidy's checks. The analyzer follows a
# function for NODES states of the program, which is nearly all of the time; 225000 are its own measure.
set -euo pipefail
source tests/lint/common.sh
need clang-tidy-14
need jq
build=$1
export nodes=$2
work=$build/clang-tidy-$nodes
rm -rf "$work"
mkdir -p "$work"

# One command a file (the CPU's kernels are compiled twice, CUDA's sources also by nvcc), told what analyzer.h tells;
# core/base/status.c defines the very functions that it wraps.
tracked_sources | jq -R . | jq -s . >"$work/tracked.json"
jq --arg root "$PWD/" --arg header "$PWD/tests/lint/analyzer.h" --slurpfile tracked "$work/tracked.json" '
  map(select((.command | test("^[^ ]*nvcc ") | not)
             and (.file | ltrimstr($root) | IN($tracked[0][]))))
  | unique_by(.file)
  | map(if .file | endswith("core/base/status.c") then . else .command += " -include " + $header end)' \
  "$build/compile_commands.json" >"$work/compile_commands.json"

count=$(jq length "$work/compile_commands.json")
((count > 0)) || fail "$build/compile_commands.json names no tracked source"
# One file a process: with more, the analyzer forgets va_start. Kernels go without the analyzer, which takes minutes for
# the emulator's templates: what it would look for, the emulator finds while they run.
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
