# Sourced by the lint tests, which run in the root of the source tree: lists tracked files, and ends a test.
# shellcheck shell=bash

# skip REASON: ends the test with 77, which CTest counts as skipped.
skip() {
  echo "skipped: $*"
  exit 77
}

fail() {
  echo "$*" >&2
  exit 1
}

need() {
  command -v "$1" >/dev/null || skip "$1 is not installed (scripts/setup.sh --tests installs it where the distribution has it)"
}

need git
git ls-files --error-unmatch CMakeLists.txt >/dev/null 2>&1 || skip "not a checkout: the tracked files are not known"

# tracked PATTERN…: prints the tracked files that exist, one on each line.
tracked() {
  local path
  git ls-files -- "$@" | while IFS= read -r path; do
    if [[ -f $path ]]; then echo "$path"; fi
  done
}

tracked_sources() {
  tracked '*.c' '*.h' '*.cc' '*.cu' '*.cuh'
}
