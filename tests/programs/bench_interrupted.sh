#!/usr/bin/env bash
# scripts/bench/model_load.sh begins anew where it was interrupted while it made its models; with stand-ins for the
# programs, in a tree of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/scripts/bench" "$folder/build/release/train" "$folder/build/release/infer"
cp scripts/bench/model_load.sh "$folder/scripts/bench"

# hvla-train ends as the real one does where a run is there already.
cat >"$folder/build/release/train/hvla-train" <<'TEXT'
#!/bin/sh
mkdir -p build/model-load && mkdir build/model-load/run || exit 2
[ "$INTERRUPTED" = train ] && exit 130
mkdir build/model-load/run/model
TEXT
cat >"$folder/build/release/infer/hvla-infer" <<'TEXT'
#!/bin/sh
case "$INTERRUPTED $*" in
  export\ export*) exit 130 ;;
  *\ export*) mkdir build/model-load/bf16 ;;
  *"--model build/model-load/bf16"*) [ -d build/model-load/bf16 ] ;;
esac
TEXT
chmod +x "$folder"/build/release/*/*

for part in train export; do
  rm -rf "$folder/build/model-load"
  code=0
  INTERRUPTED=$part "$folder/scripts/bench/model_load.sh" >"$folder/log" 2>&1 || code=$?
  ((code == 130)) || { echo "interrupted, it ends with $code: $(cat "$folder/log")" >&2 && exit 1; }
  INTERRUPTED='' "$folder/scripts/bench/model_load.sh" >"$folder/log" 2>&1 ||
    { echo "interrupted in $part, it does not begin anew: $(cat "$folder/log")" >&2 && exit 1; }
done
echo "an interrupted measurement begins anew"
