#!/usr/bin/env bash
#SBATCH --job-name=hvla-train
#SBATCH --output=hvla-train-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# A training run as a SLURM job, one task a rank: see the usage.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: sbatch --nodes=N --ntasks-per-node=M [OPTIONS OF SBATCH…] scripts/launch/slurm.sh PROGRAM ARGUMENTS…

  sbatch --nodes=2 --ntasks-per-node=8 scripts/launch/slurm.sh build/release/train/hvla-train run --config run.yaml

N times M processes train together, each a task of the job. Ranks meet on the job's first node (CUDA cards, by NCCL) or
are connected by MPI. HVLA_SRUN_MPI sets srun's --mpi: `pmix` by default, which Debian's Open MPI needs; `none` is enough
for NCCL; `srun --mpi=list` shows what is available. Ask for cards with --gpus-per-node or --gpus-per-task, for
processors with --cpus-per-task. Run directory and data must be on a file system that all nodes share.

Two minutes before the time limit, and before a pre-emption (SIGTERM), all ranks finish the step and write a
checkpoint; the job then goes back to the queue, where SLURM lets it wait two minutes, and resumes: `hvla-train run`
gets --resume, so that a run directory that holds a run is continued. Where a step, a validation and a checkpoint may
take longer than two minutes, give sbatch a longer time, such as --signal=B:USR1@600: a job that is not done soon after
its limit ends for good. The limit must leave time to train before that.

After `scancel JOB` the run writes a checkpoint, too, and the job ends; after `scancel --batch --signal=USR1 JOB` it
goes back to the queue. After `scancel JOB`, and a pre-emption without a grace time, SLURM waits only for its KillWait,
30 seconds unless the cluster says otherwise: end a large run by the signal, and the job once it waits in the queue. A
job that fails is not requeued; nor is one that lost a node, unless SLURM notices that (SlurmdTimeout) before the other
ranks do, who take about a minute.
TEXT
}

fail() {
  echo "slurm.sh: $*; see scripts/launch/slurm.sh --help" >&2
  exit 2
}

# The program's exit code after a signal: the checkpoint is written.
readonly stopped=75

asked=''
trap 'asked=yes' USR1 TERM

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  -*) fail "unknown option '$1' (options of sbatch stand before the script)" ;;
esac
(($# > 0)) || fail "no program is given"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no SLURM job: submit it with sbatch"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: ${SLURM_NTASKS:-$SLURM_NNODES} rank(s), $OMP_NUM_THREADS thread(s) each"

# Without a checkpoint, a run with --resume starts anew. srun does not inherit --cpus-per-task from the job, nor, without
# --export=ALL, what is set here if the job was submitted without the caller's environment.
if [[ " $* " == *" run "* && " $* " != *" --resume "* ]]; then set -- "$@" --resume; fi
srun --export=ALL --mpi="${HVLA_SRUN_MPI:-pmix}" --kill-on-bad-exit=1 \
  ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$@" &
pid=$!
# srun passes the signal on to each rank. While ranks are being started, it is lost or kills them: so it is sent again
# until srun has ended, and a job whose ranks it killed is requeued as well.
while kill -0 "$pid" 2> /dev/null; do
  if [[ -z $asked ]]; then
    wait "$pid" || true
  else
    kill -USR1 "$pid" 2> /dev/null || true
    sleep 1
  fi
done
code=0
wait "$pid" || code=$?
if [[ -n $asked ]] && ((code > 128)); then code=$stopped; fi
if ((code == stopped)); then
  # scancel makes ranks write a checkpoint, too, but a job that was cancelled must not be requeued; and a job that is
  # pre-empted without a grace time is requeued by SLURM itself.
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format='%T %r' || true)
  case $state in
    RUNNING* | *TimeLimit)
      echo "job $SLURM_JOB_ID asks to go back to the queue"
      scontrol requeue "$SLURM_JOB_ID" ||
        echo "slurm.sh: SLURM does not requeue job $SLURM_JOB_ID; submitted again, it resumes" >&2
      ;;
    *) echo "job $SLURM_JOB_ID was cancelled or pre-empted; started again, it resumes" ;;
  esac
fi
exit "$code"
