#!/usr/bin/env bash
# Installs, builds and runs every test, in the release build and under sanitizers.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: scripts/test.sh [--long]

Installs missing packages, builds the presets `release` and `sanitize` (address and undefined
behaviour) below build/, and runs the tests of both. --long adds the tests labelled `long` (soak, fuzzing, full
sweeps), runs those labelled `slow` under sanitizers too, installs the Python packages that some tests compare with
(scripts/setup.sh --python) where they can be fetched, and compiles CUDA kernels (where nvcc is found) for every
compute capability that the project names, as is always done on a machine with a card, not just 8.9. The last line sums
up the test cases of all programs:

  N passed, N failed, N skipped

A build that fails counts as one failure. Ends with 1 when anything failed.
One build by hand: cmake --preset release && cmake --build --preset release && ctest --preset release
TEXT
}

long=false
for argument in "$@"; do
  case $argument in
    --long) long=true ;;
    -h | --help) usage && exit 0 ;;
    *) echo "test: unknown option '$argument'; see scripts/test.sh --help" >&2 && exit 2 ;;
  esac
done

jobs=$(nproc)
passed=0 failed=0 skipped=0
# Two test programs at a time share the cores: threads that wait must not spin.
export OMP_WAIT_POLICY=passive
export UBSAN_OPTIONS=print_stacktrace=1

say() { printf '\n== %s\n' "$*"; }

# nvcc takes minutes for each compute capability. Without a card to run the kernels, only the one with the smallest
# multiprocessors is compiled, and stands for all.
cuda_architectures=(-UHVLA_CUDA_ARCHITECTURES) # all that the project names
if ! $long && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then cuda_architectures=(-DHVLA_CUDA_ARCHITECTURES=89); fi

# build PRESET CMAKE-ARGUMENT…: quiet on success, prints the compiler's messages on failure.
build() {
  local log=build/$1.log start=$SECONDS
  say "building $1"
  mkdir -p build
  if cmake --preset "$@" >"$log" 2>&1 && cmake --build --preset "$1" -j "$jobs" -- -k 0 >>"$log" 2>&1; then
    echo "built in $((SECONDS - start)) s"
    return 0
  fi
  grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking)' "$log" | tail -n 200
  echo "the build of $1 failed; all of its output is in $log"
  failed=$((failed + 1))
  return 1
}

# count_cases JUNIT LOG: passed, failed and skipped cases. A cmocka program counts its cases, any other program is one
# case; a program that failed without naming a failed case (a crash, a time-out, a leak) adds one.
count_cases() {
  awk '
    FNR == 1 { file++ }
    file == 1 && /<testcase / {
      match($0, / name="[^"]*"/); name = substr($0, RSTART + 7, RLENGTH - 8)
      status[name] = /status="run"/ ? "run" : "fail"
    }
    file == 1 && /<skipped message="SKIP_/ { status[name] = "skip" }
    file == 2 && /^[0-9]+\/[0-9]+ Testing: / { name = $0; sub(/^[0-9]+\/[0-9]+ Testing: /, "", name) }
    file == 2 && /^\[  PASSED  \] [0-9]+ test\(s\)/ { passed[name] += $4 }
    file == 2 && /^\[  FAILED  \] [0-9]+ test\(s\)/ { failed[name] += $4 }
    file == 2 && /^\[  SKIPPED \] [0-9]+ test\(s\)/ { skipped[name] += $4 }
    END {
      for (name in status) {
        cases = passed[name] + failed[name] + skipped[name]
        if (status[name] == "run" && !cases) passed[name] = 1
        if (status[name] == "skip" && !cases) skipped[name] = 1
        if (status[name] == "fail" && !failed[name]) failed[name] = 1
        p += passed[name]; f += failed[name]; s += skipped[name]
      }
      print p + 0, f + 0, s + 0
    }' "$1" "$2"
}

# run_tests PRESET CTEST-ARGUMENT…
run_tests() {
  local preset=$1 start=$SECONDS status=0 counts p f s
  shift
  say "testing $preset"
  rm -f "build/$preset/junit.xml" "build/$preset/Testing/Temporary/LastTest.log"
  ctest --preset "$preset" -j "$jobs" --no-tests=error --output-junit junit.xml "$@" || status=$?
  if [[ -s build/$preset/junit.xml && -s build/$preset/Testing/Temporary/LastTest.log ]]; then
    counts=$(count_cases "build/$preset/junit.xml" "build/$preset/Testing/Temporary/LastTest.log")
  else
    counts="0 0 0"
  fi
  read -r p f s <<<"$counts"
  if ((status != 0 && f == 0)); then f=1; fi
  echo "$preset: $p passed, $f failed, $s skipped in $((SECONDS - start)) s"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

say "installing packages"
scripts/setup.sh --tests
if $long; then scripts/setup.sh --python || echo "tests that need Python's packages will be skipped"; fi

release_selection=(-LE '^long$')
sanitize_selection=(-LE '^(lint|long|slow)$')
if $long; then
  release_selection=()
  sanitize_selection=(-LE '^lint$')
fi
if build release "${cuda_architectures[@]}"; then run_tests release "${release_selection[@]}"; fi
if build sanitize; then run_tests sanitize "${sanitize_selection[@]}"; fi

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
