#!/usr/bin/env bash
# out_of_memory.sh BUILD LIBRARY [all]: lets one allocation after the other fail in the programs' commands. Each time,
# the program must end with 2 and say that memory is missing, or do what it does otherwise, to the byte (a lost line of
# the log, a buffer that could not grow): never a crash, and never less in its files with exit code 0. Without `all`,
# only some of the allocations are tried.
set -euo pipefail
export LC_ALL=C.UTF-8 OMP_NUM_THREADS=1
build=$1 library=$2 kind=${3:-some}
model=tests/fixtures/parity/one_arm demos=data/demos/lift.hdf5
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# results FOLDER: what a command wrote, without its messages.
results() {
  (cd "$1" && find . -type f ! -name errors ! -name count -exec sha256sum {} + | sort -k 2)
}

# run FOLDER NUMBER COMMAND…: runs a command, in which OUT stands for the folder, with that allocation failing.
run() {
  local out=$1 at=$2
  shift 2
  rm -rf "$out"
  mkdir -p "$out"
  FAIL_ALLOCATION_AT=$at FAIL_ALLOCATION_COUNT=$out/count MALLOC_PERTURB_=165 LD_PRELOAD=$library \
    "${@//OUT/$out}" >"$out/output" 2>"$out/errors"
}

# run_whole FOLDER COMMAND…: the same with every allocation; the test ends if that fails.
run_whole() {
  local out=$1
  shift
  run "$out" -1 "$@" || { cat "$out/errors"; exit 1; }
}

# try MOST COMMAND…: at most so many of the command's allocations, spread over all of them.
try() {
  local most=$1 count step whole status at
  shift
  run_whole "$folder/once" "$@"
  count=$(<"$folder/once/count") whole=$(results "$folder/once")
  step=$(((count + most - 1) / most))
  [[ $kind == all ]] && step=1
  local refused=0 unharmed=0
  for ((at = step / 2; at < count; at += step)); do
    status=0
    run "$folder/once" "$at" "$@" || status=$?
    if ((status == 2)) && grep -qE 'out of memory|Cannot allocate memory' "$folder/once/errors"; then
      refused=$((refused + 1))
    elif ((status == 0)) && [[ $(results "$folder/once") == "$whole" ]]; then
      unharmed=$((unharmed + 1))
    else
      echo "allocation $at of $count, $*: exit code $status"
      tail -n 3 "$folder/once/errors"
      failures=$((failures + 1))
    fi
  done
  echo "$count allocations: $refused refused, $unharmed without effect: ${1##*/} $2"
  # The library would let nothing fail if it took the program's code to lie elsewhere.
  if ((refused == 0)); then
    echo "no allocation of this command has failed"
    failures=$((failures + 1))
  fi
}

data=$build/data/hvla-data train=$build/train/hvla-train infer=$build/infer/hvla-infer
try 100 "$data" inspect $demos --json
try 60 "$data" stats $demos --out OUT/statistics.json
try 60 "$data" validate $demos --json
try 60 "$train" check --model $model --batch $model/batch.safetensors --out OUT/out.safetensors --steps 1 --lr 1e-3
try 40 "$train" plan --config configs/tiny.yaml --gpus 2 --gpu-memory 80 --json
try 20 "$train" config --config configs/tiny.yaml
run_whole "$folder/trained" "$train" run --config configs/tiny.yaml --set train.steps=2 --set output=OUT/run
try 60 "$infer" export --model "$folder/trained/run/model" --out OUT/model --dtype bf16 --verify
try 60 "$infer" export --model "$folder/trained/run/model" --out OUT/model --format public-pt
try 20 "$train" model --run "$folder/trained/run" --out OUT/model
((failures == 0))
