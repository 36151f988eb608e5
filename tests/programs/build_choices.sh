#!/usr/bin/env bash
# CMake refuses a value of HVLA_CUDA, HVLA_MPI and their like other than AUTO, ON or OFF, instead of taking it for AUTO.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for choices in "-DHVLA_CUDA=off" "-DHVLA_CUDA=OFF -DHVLA_MPI=0"; do
  read -ra options <<<"$choices"
  if cmake -S . -B "$folder" -G Ninja -DHVLA_TESTS=OFF "${options[@]}" >"$folder/log" 2>&1; then
    echo "cmake accepted $choices" >&2
    exit 1
  fi
  grep -q 'must be AUTO, ON or OFF' "$folder/log" || { cat "$folder/log" >&2 && exit 1; }
done
echo "build options are AUTO, ON or OFF"
