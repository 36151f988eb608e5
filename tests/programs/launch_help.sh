#!/usr/bin/env bash
# Every launch script tells how it is used, anywhere, and refuses what it cannot start with a word of that.
set -euo pipefail
unset "${!SLURM_@}"

for script in scripts/launch/*.sh; do
  name=$(basename "$script")
  for option in -h --help; do
    text=$(bash "$script" "$option") || { echo "$name $option ends with $?" >&2 && exit 1; }
    [[ $text == Usage:*"$script"*PROGRAM* ]] || { echo "$name $option tells no usage: $text" >&2 && exit 1; }
  done
  for arguments in '' --nonsense; do
    code=0
    text=$(bash "$script" $arguments 2>&1) || code=$?
    [[ $code == 2 && $text == "$name: "*"$script --help" ]] || { echo "$name '$arguments': $code, $text" >&2 && exit 1; }
  done
done
echo "all launch scripts tell how they are used"
