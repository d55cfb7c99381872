#!/bin/sh
# Pretrains with Open MPI on the hosts of a host file, one process per slot:
#   sh mpi.sh --hostfile hosts -- photos --preset photos-224 --out /shared/runs/photos
# What stands before -- goes to mpirun. On GPUs, give each host as many slots as it has
# GPUs: process N of a host takes its GPU N. Open MPI 5 also needs `pip install mpi4py`.

flags=
while [ "$#" -gt 0 ] && [ "$1" != -- ]; do
  flags="$flags $1"
  shift
done
shift

export AFTERIMAGE_HOSTS=auto
# shellcheck disable=SC2086  # the flags are several words
exec mpirun $flags -x AFTERIMAGE_HOSTS afterimage pretrain "$@"
