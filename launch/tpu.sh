#!/usr/bin/env bash
# Trains, evaluates and reports on every host of a Cloud TPU slice, started from your own machine.
#
#   TPU_NAME=NAME ZONE=ZONE ./launch/tpu.sh --config configs/NAME.py --workdir DIR [...]
#
#   TPU_NAME  the TPU VM
#   ZONE      its zone, such as us-west4-a
#   PROJECT   its Google Cloud project; default: gcloud's own
#
# Make one first, for example (other types: https://cloud.google.com/tpu/docs/jax-pods)
#
#   gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
#     --accelerator-type=v5litepod-16 --version=tpu-ubuntu2204-base
#
# The files of the commit at HEAD go to ~/drnet_jax on each worker, and train.sh runs there with
# the arguments given here, whose relative paths start at ~/drnet_jax there. DIR, and the data set's
# directory, must be the same directory on every worker: a shared file system, or a bucket mounted
# by gcsfuse. The same command again resumes. Interrupting it leaves the workers running; what stops
# them is
#
#   gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all \
#     --command='pkill -f "[d]rnet_jax.main"'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${TPU_NAME:?is not set; see the head of launch/tpu.sh}"
: "${ZONE:?is not set; see the head of launch/tpu.sh}"
where=(--zone="$ZONE" --worker=all ${PROJECT:+--project="$PROJECT"})

if ! git diff --quiet HEAD; then
  echo "warning: changes that are not committed stay here; the workers get HEAD" >&2
fi
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:drnet_jax.tar.gz" "${where[@]}"

# Runs on each worker. TPU images carry Python 3.10, and often no venv: uv fetches a Python.
on_worker=$(cat <<'EOF'
set -eu
mkdir -p ~/drnet_jax
tar -xzf ~/drnet_jax.tar.gz -C ~/drnet_jax
if ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv python install 3.12
  PYTHON=$(~/.local/bin/uv python find 3.12)
  export PYTHON
fi
export JAX_PLATFORMS=tpu,cpu
cd ~/drnet_jax
launch/train.sh --distributed
EOF
)
on_worker+=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --command="$on_worker"
