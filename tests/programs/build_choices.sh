#!/usr/bin/env bash
# A choice of the build that is spelled otherwise than AUTO, ON or OFF is refused, not taken for AUTO.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for choices in "-DHVLA_CUDA=off" "-DHVLA_CUDA=OFF -DHVLA_MPI=0"; do
  read -ra options <<<"$choices"
  if cmake -S . -B "$folder" -DHVLA_TESTS=OFF "${options[@]}" >"$folder/log" 2>&1; then
    echo "it was taken: $choices" >&2
    exit 1
  fi
  grep -q 'must be AUTO, ON or OFF' "$folder/log" || { cat "$folder/log" >&2 && exit 1; }
done
echo "choices of the build are AUTO, ON or OFF"
