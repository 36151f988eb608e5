#!/usr/bin/env bash
# Every script prints its usage, and finds its own source tree even if CDPATH is set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/scripts/bench"
export CDPATH=$folder

for script in scripts/*.sh scripts/bench/*.sh; do
  for option in -h --help; do
    text=$("$script" "$option") || { echo "$script $option ends with code $?" >&2 && exit 1; }
    # If cd followed CDPATH, it would print a line first.
    [[ $text == "Usage: $script"* ]] || { echo "$script $option does not begin with its usage: $text" >&2 && exit 1; }
  done
done
echo "all scripts print their usage"
