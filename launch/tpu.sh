#!/usr/bin/env bash
# A Cloud TPU slice, from your own machine: asked for, trained on, and given back.
#
#   export TPU_NAME=NAME ZONE=us-west4-a
#   TYPE=v5litepod-16 ./launch/tpu.sh create
#   ./launch/tpu.sh train --config configs/NAME.py --workdir DIR [...]
#   ./launch/tpu.sh fetch DIR TO        # copies a directory of the first worker to TO, here
#   ./launch/tpu.sh delete
#
#   TPU_NAME  of the slice
#   ZONE      its zone
#   PROJECT   its Google Cloud project; default: gcloud's own
#   TYPE      of accelerator, for create: https://cloud.google.com/tpu/docs/jax-pods
#   SPOT      1: a slice that costs less and may be taken away; then, if TYPE is set, train asks for
#             another, and goes on there
#   DRY_RUN   1: print what would be run
#
# create waits in Google's queue until the slice is there. train copies the files of the commit at
# HEAD to ~/drnet_jax on each worker and runs train.sh there with the arguments given here, whose
# relative paths start at ~/drnet_jax there. DIR, and the data set's directory, must be the same
# directory on every worker: a shared file system, or a bucket mounted by gcsfuse. The same command
# again resumes. Interrupting it leaves the workers running; `stop` has them save and stop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

: "${TPU_NAME:?is not set; see the head of launch/tpu.sh}"
: "${ZONE:?is not set; see the head of launch/tpu.sh}"
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
queue=(gcloud compute tpus queued-resources)
machines=(gcloud compute tpus tpu-vm)

create() {
  run "${queue[@]}" create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="${TYPE:?is not set; see the head of launch/tpu.sh}" \
    --runtime-version=tpu-ubuntu2204-base "${where[@]}" ${SPOT:+--spot}
  until [[ $(state) == ACTIVE ]]; do
    case $(state) in
      FAILED | SUSPEND*)
        echo "error: $TPU_NAME: expected a slice, and the request is $(state)" >&2
        exit 1
        ;;
    esac
    sleep 30
  done
}

state() {
  if [[ ${DRY_RUN:-0} != 0 ]]; then
    echo ACTIVE
  else
    "${queue[@]}" describe "$TPU_NAME" "${where[@]}" --format='value(state.state)'
  fi
}

delete() {
  run "${queue[@]}" delete "$TPU_NAME" "${where[@]}" --force --quiet
}

train() {
  if ! git diff --quiet HEAD; then
    echo "warning: changes that are not committed stay here; the workers get HEAD" >&2
  fi
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  run git archive --format=tar.gz --output="$archive" HEAD
  until started "$@"; do
    found=$(state)
    if [[ $found == ACTIVE || -z ${TYPE:-} ]]; then
      echo "error: training ended on $TPU_NAME, which is $found; the same command goes on" >&2
      exit 1
    fi
    echo "$TPU_NAME is $found: it was taken away; asking for another" >&2
    delete
    create
  done
}

started() {
  run "${machines[@]}" scp "$archive" "$TPU_NAME:drnet_jax.tar.gz" "${where[@]}" --worker=all &&
    run "${machines[@]}" ssh "$TPU_NAME" "${where[@]}" --worker=all \
      --command="$on_worker$(printf ' %q' "$@")"
}

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

command=${1:?expected create, train, stop, fetch or delete}
shift
case $command in
  create) create ;;
  train) train "$@" ;;
  stop)
    run "${machines[@]}" ssh "$TPU_NAME" "${where[@]}" --worker=all \
      --command='pkill -TERM -f "[d]rnet_jax.main"'
    ;;
  fetch)
    run "${machines[@]}" scp --recurse "$TPU_NAME:${1:?is the directory there}" \
      "${2:?is where to copy it to}" "${where[@]}" --worker=0
    ;;
  delete) delete ;;
  *)
    echo "error: expected create, train, stop, fetch or delete, received $command" >&2
    exit 2
    ;;
esac
