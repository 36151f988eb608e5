#!/usr/bin/env bash
# scripts/launch/mpirun.sh calls mpirun as its options say, passes signals on, and ends with the exit code of the ranks.
# Here a script takes the place of mpirun; tests/comm/test_run_ranks.c uses the real one.
set -euo pipefail
source tests/programs/stand_ins.sh

# This mpirun notes its arguments and ends with the code $MPIRUN_ENDS. If that is "signal", it waits, notes SIGUSR2, and
# ends with 75 on SIGUSR1, as ranks do that have written their checkpoint; if it is "killed", SIGUSR1 kills it.
stand_in mpirun << 'TEXT'
#!/usr/bin/env bash
case $MPIRUN_ENDS in
  signal)
    trap 'exit 75' USR1
    trap 'echo USR2 > "$FOLDER/saved"' USR2
    ;;
esac
echo "$OMP_NUM_THREADS threads: $*" > "$FOLDER/asked"
case $MPIRUN_ENDS in
  signal | killed) for _ in {1..300}; do sleep 0.1; done ;;
  *) exit "$MPIRUN_ENDS" ;;
esac
TEXT
printf '#!/bin/sh\necho 12\n' | stand_in nproc
unset OMPI_MCA_odls_base_sigkill_timeout MPIRUN_SIGNAL
for name in $(compgen -e); do
  if [[ $name == NCCL_* || $name == HVLA_* ]]; then unset "$name"; fi
done

# expect CODE ENDS ARGUMENT…: runs the launcher with MPIRUN_ENDS=ENDS; its exit code must be CODE. If mpirun waits for
# signals, the launcher is sent those in $MPIRUN_SIGNAL.
expect() {
  local code=$1 ends=$2 found=0 pid name
  shift 2
  rm -f "$folder/asked" "$folder/saved"
  MPIRUN_ENDS=$ends env --default-signal=INT bash scripts/launch/mpirun.sh "$@" > "$folder/log" 2>&1 &
  pid=$!
  if [[ $ends == signal || $ends == killed ]]; then
    until [[ -s $folder/asked ]]; do sleep 0.02; done
    for name in $MPIRUN_SIGNAL; do
      kill -s "$name" "$pid"
      until [[ $name != USR2 || -s $folder/saved ]]; do sleep 0.02; done
    done
  fi
  wait "$pid" || found=$?
  ((found == code)) || fail "mpirun.sh $*: exit code $found, not $code: $(cat "$folder/log")"
}

expect 0 0 -n 3 train run --config 'a file.yaml' -n 5
asked '4 threads: -np 3' # of 12 processors
asked 'train run --config a file.yaml -n 5'
asked_not -H
asked '-x OMP_NUM_THREADS'
HVLA_EARLY=0 NCCL_DEBUG=INFO OTHER=1 expect 0 0 -H node1:2,node2:2 -n 4 -- --odd
asked '6 threads: -np 4' # of the processors of this machine, which has two of the ranks
asked '-H node1:2,node2:2'
asked '-x HVLA_EARLY'
asked '-x NCCL_DEBUG'
asked_not '-x OTHER'
asked '--odd'
asked_not '-- --odd'
expect 0 0 -n 40 train
asked '1 threads: -np 40'
asked '--mca odls_base_sigkill_timeout 3'
OMP_NUM_THREADS=5 OMPI_MCA_odls_base_sigkill_timeout=1 expect 0 0 -n 2 train
asked '5 threads:'
asked '--mca odls_base_sigkill_timeout 1'

# The code is the ranks'; what asked them to stop says which of two it is.
expect 3 3 -n 2 train
expect 75 75 -n 2 train
MPIRUN_SIGNAL=TERM expect 75 signal -n 2 train
MPIRUN_SIGNAL='USR2 HUP' expect 75 signal -n 2 train
MPIRUN_SIGNAL=INT expect 130 signal -n 2 train
# Too early for ranks, it kills mpirun.
MPIRUN_SIGNAL=USR1 expect 75 killed -n 2 train

# refused WORDS ARGUMENT…
refused() {
  local words=$1
  shift
  expect 2 0 "$@"
  grep -qF -- "$words" "$folder/log" || fail "mpirun.sh $*: the message lacks '$words': $(cat "$folder/log")"
  [[ ! -e $folder/asked ]] || fail "mpirun.sh $*: it started mpirun"
}
refused '-n RANKS is needed' train
refused '-n RANKS is needed' -n 0 train
refused '-n RANKS is needed' -n two train
refused '-n needs a value' -n
refused "unknown option '-x'" -x 2 train
refused 'no program is given' -n 2
expect 0 0 --help
grep -q 'Usage: ' "$folder/log" || fail "--help says: $(cat "$folder/log")"
echo "ranks are started and stopped as they should"
