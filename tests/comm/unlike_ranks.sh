#!/bin/sh
# unlike_ranks.sh VARIABLE=VALUE KEY=VALUE PROGRAM ARGUMENT…: runs the program; mpirun starts this once a rank. Ranks
# other than 0 get the environment variable, and `--set KEY=VALUE`; an empty word stands for none. (mpirun could start
# different ranks by itself, but that of Open MPI 5.0.7 on Debian 13 crashes then.) If the variable is RESUME, these
# ranks get --resume. If it is MEMINFO, its file replaces /proc/meminfo in a user namespace of theirs; inside a second
# one they are the original user again, whom MPI's launcher expects.
variable=$1 setting=$2
shift 2
if [ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" != 0 ]; then
  if [ -n "$variable" ]; then export "${variable?}"; fi
  if [ -n "$setting" ]; then set -- "$@" --set "$setting"; fi
  if [ -n "$RESUME" ]; then set -- "$@" --resume; fi
fi
if [ -n "$MEMINFO" ]; then
  user=$(id -u) group=$(id -g)
  export user group
  # shellcheck disable=SC2016 # for the shell within
  exec unshare -rm sh -c 'mount --bind "$MEMINFO" /proc/meminfo &&
    exec unshare -U --map-user="$user" --map-group="$group" "$0" "$@"' "$@"
fi
exec "$@"
