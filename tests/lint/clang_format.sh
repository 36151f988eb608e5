#!/usr/bin/env bash
# Every source is formatted as .clang-format says, with clang-format 14 (versions format differently).
set -euo pipefail
source tests/lint/common.sh
need clang-format-14

if ! tracked_sources | xargs clang-format-14 --dry-run --Werror; then
  fail "format the files above: clang-format-14 -i FILE…"
fi
echo "$(tracked_sources | wc -l) files are well formatted"
