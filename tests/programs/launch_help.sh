#!/usr/bin/env bash
# Every script in scripts/launch prints its usage, also outside of its batch system, and refuses wrong arguments with a
# line that points to --help.
set -euo pipefail
unset "${!SLURM_@}"

for script in scripts/launch/*.sh; do
  name=$(basename "$script")
  for option in -h --help; do
    text=$(bash "$script" "$option") || { echo "$name $option ends with code $?" >&2 && exit 1; }
    [[ $text == Usage:*"$script"*PROGRAM* ]] || { echo "$name $option prints no usage: $text" >&2 && exit 1; }
  done
  for arguments in '' --nonsense; do
    code=0
    text=$(bash "$script" $arguments 2>&1) || code=$?
    [[ $code == 2 && $text == "$name: "*"$script --help" ]] || { echo "$name '$arguments': exit code $code, expected 2 and a line about --help: $text" >&2 && exit 1; }
  done
done
echo "all launch scripts print their usage"
