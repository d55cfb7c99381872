#!/bin/sh
# Pretrains on every host of a TPU slice, and continues after a preemption:
#   NAME=my-tpu ZONE=us-central2-b sh tpu-pod.sh gs://data/photos --preset photos-224 --out gs://runs/photos
# Images and run folder: in buckets, or on a file system that every host mounts, at the
# same path. `afterimage[gcs]` and `jax[tpu]` must be installed on every host.
set -u

command="AFTERIMAGE_HOSTS=auto afterimage pretrain"
for word in "$@"; do
  # In single quotes for the remote shell; each ' inside becomes '\''.
  command="$command '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
done

until gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all \
  --command="$command"; do
  code=$?
  # 75: stopped by a signal, everything saved. 255: the connection broke.
  case "$code" in
    75 | 255) sleep 60 ;;
    *) exit "$code" ;;
  esac
done
