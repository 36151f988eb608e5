#!/bin/sh
# unlike_ranks.sh VARIABLE=VALUE KEY=VALUE PROGRAM ARGUMENT…: as mpirun starts it; ranks after the first have the variable,
# and --set with the key, each unless it is empty. mpirun can start unlike ranks by itself, but that of Open MPI 5.0.7 on
# Debian 13 crashes over it. The variable RESUME has those ranks resume; MEMINFO is a file that they have in place of
# /proc/meminfo, in a user namespace of their own; in one more they are the user again that MPI's launcher takes its ranks
# to be.
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
