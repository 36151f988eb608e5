#!/usr/bin/env bash
# docs/architecture.md lists exactly the folders that hold sources of the system; files and functions that it names
# exist.
# shellcheck disable=SC2016
set -euo pipefail
source tests/lint/common.sh
page=docs/architecture.md

listed=$(sed -n '/^<!-- rooms/,/^<!-- \/rooms/p' "$page" | sed -nE 's/^\| `([^`]+)\/` \|.*/\1/p' | sort)
present=$(tracked_sources | grep -vE '^(tests|scripts)/' | xargs -n 1 dirname | sort -u)
[[ -n $listed ]] || fail "$page has no list of rooms between <!-- rooms … --> and <!-- /rooms -->"
if ! difference=$(diff <(echo "$listed") <(echo "$present")); then
  fail "$page (<) lists other rooms than the tree has (>):"$'\n'"$(grep '^[<>]' <<<"$difference")"
fi
missing=$(sed -nE 's/^\| `([^`]+)\/` \|.*\| ([^|]*) \|$/\1 \2/p' "$page" | while read -r room files; do
  for file in $(grep -oE '[a-z_]+\.[a-z]+' <<<"$files"); do
    if [[ ! -f $room/$file ]]; then echo "$room/$file"; fi
  done
done)
[[ -z $missing ]] || fail "$page points to files that are not there:"$'\n'"$missing"

gone=$(grep -ohE '\bhv_[a-z0-9_]+' "$page" | sort -u | while read -r name; do
  if ! tracked_sources | xargs grep -qw "$name"; then echo "$name"; fi
done)
[[ -z $gone ]] || fail "$page names what the sources do not have:"$'\n'"$gone"
echo "$(wc -l <<<"$listed") rooms are listed and there"
