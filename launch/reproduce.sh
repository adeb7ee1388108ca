#!/usr/bin/env bash
# The paper's tables and figures, on this host: the plan first, then every run; at the small scale
# one on each core.
#
#   ./launch/reproduce.sh all --workdir runs/paper [--scale small|paper] [--data folder:DIR]
#
# Paths are relative to the directory that you call this from. The same command again goes on where
# it was stopped. PYTHON, VENV and JAX_PLATFORMS as in setup.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

"$root/launch/setup.sh"
exec "$python" -m drnet_jax.main reproduce "$@"
