#!/usr/bin/env bash
# Trains on the nodes of a Slurm job, one process for each GPU, then evaluates and reports.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#     --config configs/NAME.py --workdir DIR [...]
#
# DIR, the data set and this repository must be the same directories on every node. Submit from the
# repository. Three minutes before the time limit, or when Slurm preempts the job, training saves and
# stops, and the job is queued again, to go on from there. DRY_RUN=1 prints what would be run.
#
#SBATCH --job-name=drnet_jax
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
#SBATCH --open-mode=append
set -euo pipefail

# Slurm copies this file elsewhere and runs the copy.
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/env.sh"
run "$root/launch/setup.sh"
job=(srun "$root/launch/train.sh" --distributed "$@")
if [[ ${DRY_RUN:-0} != 0 ]]; then
  run "${job[@]}"
  exit
fi
"${job[@]}" &
running=$!
trap 'kill -TERM "$running"' TERM  # srun hands it on
status=0
wait "$running" || status=$?
while kill -0 "$running" 2>/dev/null; do  # what ended was the waiting, by the signal
  status=0
  wait "$running" || status=$?
done
if [[ $status == 75 ]]; then  # it has saved and stopped
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
