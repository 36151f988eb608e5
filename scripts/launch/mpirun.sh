#!/usr/bin/env bash
# Starts a run on several ranks with mpirun, on this machine or on several: see the usage.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/launch/mpirun.sh -n RANKS [-H HOST:SLOTS,HOST:SLOTS,…] PROGRAM ARGUMENTS…

  scripts/launch/mpirun.sh -n 2 build/release/train/hvla-train run --config configs/lift-tiny.yaml --set output=runs/two
  scripts/launch/mpirun.sh -n 16 -H node1:8,node2:8 hvla-train run --config run.yaml --resume

RANKS processes train together. With hosts, the program, the data and the run directory must have the same paths on all
of them, and `ssh` must reach them without a password. OMP_NUM_THREADS sets the threads of each rank (by default
the processors of this machine are divided among the ranks that run on it). It is passed on to other hosts, as is every
exported variable whose name begins with NCCL_ or HVLA_.

After SIGTERM, SIGUSR1, Ctrl-C or a closed terminal (not under nohup) all ranks finish the step and write a checkpoint;
the exit code is then 75, or 130 after Ctrl-C, and the same command with --resume continues, with this or any other
number of ranks. After SIGUSR2 they write a checkpoint and the model, and go on. If a rank dies, all end within a minute
with a message that names it.
TEXT
}

fail() {
  echo "mpirun.sh: $*; see scripts/launch/mpirun.sh --help" >&2
  exit 2
}

ranks='' hosts=''
while (($# > 0)); do
  case $1 in
    -n | -H)
      (($# > 1)) || fail "$1 needs a value"
      if [[ $1 == -n ]]; then ranks=$2; else hosts=$2; fi
      shift 2
      ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    -*) fail "unknown option '$1'" ;;
    *) break ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "-n RANKS is needed, a number from 1 on"
(($# > 0)) || fail "no program is given"
command -v mpirun > /dev/null || fail "mpirun is not installed (Debian: openmpi-bin)"

slots=$ranks
if [[ $hosts =~ ^[^:,]+:([0-9]+) ]]; then slots=${BASH_REMATCH[1]}; fi
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
  threads=$(($(nproc) / slots))
  export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# Ranks are not bound to processors, since their threads share them, and there may be more ranks than processors. When a
# rank dies, the others have twice three seconds, or what the environment says, to log what they know (Open MPI 5 gives
# them half a second, and names the rank itself). A host that is cut off is noticed within half a minute instead of eight.
command=(mpirun -np "$ranks" --bind-to none --oversubscribe -x OMP_NUM_THREADS
  --mca odls_base_sigkill_timeout "${OMPI_MCA_odls_base_sigkill_timeout:-3}" --mca mpi_yield_when_idle 1
  --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3)
if [[ -n $hosts ]]; then command+=(-H "$hosts"); fi
# Settings of NCCL and of this program apply on all hosts.
for name in $(compgen -e); do
  if [[ $name == NCCL_* || $name == HVLA_* ]]; then command+=(-x "$name"); fi
done

# mpirun answers SIGTERM and Ctrl-C by ending its ranks with too little time for a checkpoint, but hands SIGUSR1 on to
# them. In a process group of its own it does not get the terminal's Ctrl-C.
stopped=75 asked='' interrupted='' pid=''
trap 'asked=yes' TERM HUP USR1
trap 'asked=yes interrupted=yes' INT
trap '[[ -z $pid ]] || kill -USR2 "$pid" 2> /dev/null || true' USR2
set -m
"${command[@]}" "$@" < /dev/null &
pid=$!
# While ranks are being started, the signal is lost or kills them: so it is sent again until mpirun has ended.
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
if [[ -n $asked ]] && ((code == 128 + $(kill -l USR1))); then code=$stopped; fi
if [[ -n $interrupted && $code == "$stopped" ]]; then code=130; fi
exit "$code"
