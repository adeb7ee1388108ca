#!/usr/bin/env bash
# Trains both stages on this host, on its CPU or on all of its GPUs, then evaluates and reports.
#
#   ./launch/train.sh --config configs/NAME.py --workdir DIR [--config.KEY=VALUE ...]
#
# Paths are relative to the directory that you call this from. The same command again resumes a run
# that was stopped. CUDA_VISIBLE_DEVICES=0,1 chooses GPUs; PYTHON, VENV and JAX_PLATFORMS as in
# setup.sh. DRY_RUN=1 prints what would be run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

run "$root/launch/setup.sh"
trap : TERM HUP INT  # they are for the training, which saves, and ends with that status
run "$python" -m drnet_jax.main --mode=train --stopped_status=75 "$@"
run "$python" -m drnet_jax.main --mode=eval "$@"
