#!/bin/bash
# Runs an emojax command on every worker of a TPU pod slice as one job; jax finds the processes by itself.
#
#   TPU=my-pod ZONE=us-central2-b REPO=ADDRESS scripts/tpu_pod.sh setup   # once: emojax, by git, on every worker
#   TPU=my-pod ZONE=us-central2-b scripts/tpu_pod.sh probe --config configs/pod.yaml --data.path /mnt/data … --out RUN
#
# It needs gcloud, and data that every worker sees at the same path. Worker 0 writes --out and --cache. A job that lost a
# worker ends with code 3 on the rest: the same line again resumes from the last snapshot.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }

on_every_worker() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

if [ "$1" = setup ]; then
    : "${REPO:?address of the git repository of emojax}"
    on_every_worker "python3 -m venv emojax-venv && emojax-venv/bin/pip install -U 'jax[tpu]' 'emojax @ git+$REPO'"
else
    on_every_worker "emojax-venv/bin/emojax $(printf '%q ' "$@") --coordinator auto"
fi
