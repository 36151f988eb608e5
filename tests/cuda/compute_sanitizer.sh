#!/bin/sh
# compute_sanitizer.sh PROGRAM ARGUMENT …: runs a test program under each tool of compute-sanitizer. Skipped (77) if
# there is no card, or if the tools do not start. racecheck and synccheck look at our own kernels only, because they
# report false races and barriers in kernels of cuBLAS and CUTLASS.
set -eu

tool=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ ! -x "$tool" ]; then
  echo "skipped: compute-sanitizer is not installed"
  exit 77
fi

# The program ends with 77 if there is no card.
code=0
HVLA_OP=fill "$@" >/dev/null || code=$?
if [ "$code" = 77 ]; then
  echo "skipped: no GPU"
  exit 77
fi
theirs=""
for name in cublas cutlass nvjet xmma gemm gemv; do theirs="$theirs --kernel-name-exclude kns=$name"; done
# shellcheck disable=SC2086 # words
if ! HVLA_OP=fill "$tool" --tool memcheck $theirs "$@" >/dev/null 2>&1; then
  echo "skipped: compute-sanitizer does not start on this machine, or is too old for --kernel-name-exclude"
  exit 77
fi

for check in memcheck racecheck initcheck synccheck; do
  echo "== $check"
  case $check in racecheck | synccheck) others=$theirs ;; *) others="" ;; esac
  # shellcheck disable=SC2086 # words
  "$tool" --tool "$check" --error-exitcode 1 $others "$@"
done
