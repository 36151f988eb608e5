#!/usr/bin/env bash
# Every script tells how it is used, and works in its own source tree, wherever CDPATH leads.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/scripts/bench"
export CDPATH=$folder

for script in scripts/*.sh scripts/bench/*.sh; do
  for option in -h --help; do
    text=$("$script" "$option") || { echo "$script $option ends with $?" >&2 && exit 1; }
    # cd writes a line where it follows CDPATH.
    [[ $text == "Usage: $script"* ]] || { echo "$script $option begins otherwise than with its usage: $text" >&2 && exit 1; }
  done
done
echo "all scripts tell how they are used"
