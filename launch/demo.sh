#!/usr/bin/env bash
# Trains, evaluates and reports on the built-in data set: minutes on a laptop's CPU, with nothing
# to download but the requirements. Results go to runs/demo.
#
#   ./launch/demo.sh [--config.KEY=VALUE ...]
#
# PYTHON, VENV and JAX_PLATFORMS as in setup.sh.
set -euo pipefail

launch=$(dirname "${BASH_SOURCE[0]}")
exec "$launch/train.sh" \
  --config="$launch/../configs/quickstart.py" --config.data.dir=runs/data --workdir=runs/demo "$@"
