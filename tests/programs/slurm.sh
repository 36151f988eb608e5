#!/usr/bin/env bash
# scripts/launch/slurm.sh starts ranks by srun with the right options, and requeues a job when that was wanted. Scripts
# take the place of SLURM's commands.
set -euo pipefail
source tests/programs/stand_ins.sh

# This srun notes its arguments and ends with the code $SRUN_ENDS. If that is "signal", it waits and ends with 75 on
# SIGUSR1, as ranks do that have written their checkpoint; if it is "killed", SIGUSR1 kills it.
stand_in srun << 'TEXT'
#!/usr/bin/env bash
case $SRUN_ENDS in
  signal) trap 'exit 75' USR1 ;;
  killed) trap - USR1 ;;
esac
echo "$OMP_NUM_THREADS threads: $*" > "$FOLDER/asked"
case $SRUN_ENDS in
  signal | killed) for _ in {1..300}; do sleep 0.1; done ;;
  *) exit "$SRUN_ENDS" ;;
esac
TEXT
printf '#!/bin/sh\necho "$SQUEUE_SAYS"\n' | stand_in squeue
printf '#!/bin/sh\necho "$*" > "$FOLDER/scontrol"; exit "${SCONTROL_ENDS:-0}"\n' | stand_in scontrol
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' SLURM_NTASKS=2
unset SLURM_CPUS_PER_TASK HVLA_SRUN_MPI

# job ENDS STATE ARGUMENT…: runs a job with SRUN_ENDS=ENDS while squeue prints STATE; prints its exit code. If srun
# waits for SIGUSR1, the job gets one.
job() {
  local ends=$1 state=$2 code=0 pid
  shift 2
  rm -f "$folder/asked" "$folder/scontrol"
  SRUN_ENDS=$ends SQUEUE_SAYS=$state bash scripts/launch/slurm.sh "$@" > "$folder/log" 2>&1 &
  pid=$!
  if [[ $ends == signal || $ends == killed ]]; then
    until [[ -s $folder/asked ]]; do sleep 0.02; done
    kill -USR1 "$pid"
  fi
  wait "$pid" || code=$?
  echo "$code"
}

# expect CODE REQUEUED JOB…: the job must end with this exit code, and be requeued or not (yes or no).
expect() {
  local code=$1 requeued=$2 found back=no
  shift 2
  found=$(job "$@")
  if [[ -e $folder/scontrol ]]; then back=yes; fi
  [[ $found == "$code" && $back == "$requeued" ]] ||
    fail "job $*: exit code $found (not $code), requeued: $back (not $requeued); $(cat "$folder/log")"
}

expect 0 no 0 'RUNNING None' train run --config 'a file.yaml'
asked '1 threads:'
asked '--mpi=pmix --kill-on-bad-exit=1 train run --config a file.yaml --resume'
SLURM_CPUS_PER_TASK=3 HVLA_SRUN_MPI=none expect 0 no 0 'RUNNING None' train --resume run
asked '3 threads:'
asked '--mpi=none --kill-on-bad-exit=1 --cpus-per-task=3 train --resume run' # --resume must be given once
[[ $(cat "$folder/asked") == *run ]] || fail "--resume is given twice: $(cat "$folder/asked")"

expect 0 no 0 'RUNNING None' train bench
[[ $(cat "$folder/asked") == *bench ]] || fail "--resume is not only given to a run: $(cat "$folder/asked")"

# A job that fails is not requeued. One that has written its checkpoint is, unless somebody cancelled it.
expect 2 no 2 'RUNNING None' train
expect 75 yes 75 'RUNNING None' train
[[ $(cat "$folder/scontrol") == 'requeue 4711' ]] || fail "scontrol was told $(cat "$folder/scontrol")"
expect 75 yes 75 'COMPLETING TimeLimit' train
SCONTROL_ENDS=1 expect 75 yes 75 'RUNNING None' train # sbatch --no-requeue
grep -q 'does not requeue job 4711; submitted again' "$folder/log" || fail "a refused requeue: $(cat "$folder/log")"
expect 75 no 75 'COMPLETING None' train
expect 75 no 75 'CANCELLED None' train
# srun was killed by a signal that nobody sent to the job: that is a failure.
expect 137 no 137 'RUNNING None' train

# SIGUSR1 is passed on to the ranks. If it comes before they handle it, and kills srun, the job is requeued too.
expect 75 yes signal 'RUNNING None' train
expect 75 yes killed 'RUNNING None' train

expect 2 no 0 'RUNNING None'
grep -q 'no program is given' "$folder/log" || fail "no command: $(cat "$folder/log")"
unset SLURM_JOB_ID
expect 2 no 0 'RUNNING None' train
grep -q 'submit it with sbatch' "$folder/log" || fail "no job: $(cat "$folder/log")"
echo "jobs start, end and are requeued as they should"
