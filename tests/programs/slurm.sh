#!/usr/bin/env bash
# scripts/launch/slurm.sh starts ranks as it says, and sends a job back to the queue when that is what was wanted; with
# stand-ins for SLURM's commands.
set -euo pipefail
source tests/programs/stand_ins.sh

# srun: notes what it is asked for and ends as $SRUN_ENDS says; "signal": with 75 when SIGUSR1 comes, as ranks do that
# have written their checkpoint, "killed": of that signal.
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
printf '#!/bin/sh\necho "$*" > "$FOLDER/scontrol"\n' | stand_in scontrol
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' SLURM_NTASKS=2
unset SLURM_CPUS_PER_TASK HVLA_SRUN_MPI

# job ENDS STATE ARGUMENT…: the job's exit code, when srun ends so and squeue tells that state; a signal comes when srun
# waits for one.
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

# expect CODE REQUEUED JOB…: with this exit code, and back in the queue (yes or no).
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
asked '--mpi=none --kill-on-bad-exit=1 --cpus-per-task=3 train --resume run' # which is said once
[[ $(cat "$folder/asked") == *run ]] || fail "--resume is said twice: $(cat "$folder/asked")"

# A job that fails stays ended. One whose checkpoint is written goes back, unless somebody cancelled it.
expect 2 no 2 'RUNNING None' train
expect 75 yes 75 'RUNNING None' train
[[ $(cat "$folder/scontrol") == 'requeue 4711' ]] || fail "scontrol was told $(cat "$folder/scontrol")"
expect 75 yes 75 'COMPLETING TimeLimit' train
expect 75 no 75 'COMPLETING None' train
expect 75 no 75 'CANCELLED None' train
# Nobody asked for a signal that kills srun: that is a failure.
expect 137 no 137 'RUNNING None' train

# SIGUSR1 reaches the ranks; where it comes too early for them and kills srun, the job goes back as well.
expect 75 yes signal 'RUNNING None' train
expect 75 yes killed 'RUNNING None' train

expect 2 no 0 'RUNNING None'
grep -q 'no program is given' "$folder/log" || fail "no command: $(cat "$folder/log")"
unset SLURM_JOB_ID
expect 2 no 0 'RUNNING None' train
grep -q 'submit it with sbatch' "$folder/log" || fail "no job: $(cat "$folder/log")"
echo "jobs start, end and go back to the queue as they should"
