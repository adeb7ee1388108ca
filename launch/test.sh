#!/usr/bin/env bash
# Runs every check: ruff, then pytest.
#
#   ./launch/test.sh [ARGUMENTS OF PYTEST ...]
#
#   TORCH  1 installs PyTorch too, for the tests that compare with it; without it they skip
#          themselves. It is not the default because PyPI's Linux wheel carries several GB of CUDA;
#          with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu it is the CPU build.
#   PYTHON, VENV: see setup.sh
#
# ARGUMENTS are those of a pytest started in the repository, wherever you call this from.
set -euo pipefail
export JAX_PLATFORMS=cpu  # as the tests themselves do, so that no CUDA is installed for them
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

extras=(dev)
if [[ ${TORCH:-0} != 0 ]]; then
  extras+=(torch)
fi
cd "$root"
launch/setup.sh "${extras[@]}"
"$python" -m ruff check .
"$python" -m pytest --numprocesses=auto --dist=loadfile "$@"
