#!/bin/sh
# unlike_ranks.sh VARIABLE=VALUE KEY=VALUE PROGRAM ARGUMENT…: as mpirun starts it; ranks after the first have the variable,
# and --set with the key, each unless it is empty. mpirun can start unlike ranks by itself, but that of Open MPI 5.0.7 on
# Debian 13 crashes over it.
variable=$1 setting=$2
shift 2
if [ "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}" != 0 ]; then
  if [ -n "$variable" ]; then export "${variable?}"; fi
  if [ -n "$setting" ]; then set -- "$@" --set "$setting"; fi
fi
exec "$@"
