#!/usr/bin/env bash
# A file is about one thing, so no source is longer than 700 lines.
set -euo pipefail
source tests/lint/common.sh

limit=700
long=$(tracked '*.c' '*.h' '*.cc' '*.cu' '*.cuh' '*.sh' '*.py' | xargs wc -l |
  awk -v limit=$limit '$2 != "total" && $1 > limit { print $2 ": " $1 " lines" }')
[[ -z $long ]] || fail "longer than $limit lines:"$'\n'"$long"
echo "no source is longer than $limit lines"
