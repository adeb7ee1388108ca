#!/usr/bin/env bash
# Makes the virtual environment from requirements.txt, or brings it up to date; quick if there is
# nothing to do. The other launchers call it.
#
#   ./launch/setup.sh [EXTRA ...]     EXTRA: dev, torch, cuda or tpu, of pyproject.toml
#
#   PYTHON  the Python to make it with, 3.11 or newer; default: python3
#   VENV, JAX_PLATFORMS: see env.sh; the extra that JAX_PLATFORMS needs is added here
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

fail() {
  echo "error: $1" >&2
  exit 2
}

case $JAX_PLATFORMS in
  cuda* | gpu*) set -- "$@" cuda ;;
  tpu*) set -- "$@" tpu ;;
esac
extras=$(IFS=, && echo "$*")

version='import sys; print("%d.%d" % sys.version_info[:2])'
if [[ ! -x $python ]]; then
  base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail \
    "expected Python 3.11 or newer, received $base ($("$base" -c "$version" 2>&1 | tail -n 1)); \
set PYTHON, for example PYTHON=python3.12 $0"
  "$base" -m venv "$VENV"
elif [[ -n ${PYTHON:-} && $("$PYTHON" -c "$version") != $("$python" -c "$version") ]]; then
  fail "$VENV was made with Python $("$python" -c "$version") and PYTHON=$PYTHON is another; \
remove $VENV, or set VENV to a second environment"
fi

cd "$root"
# One stamp for each set of extras, written last: an installation cut short is done again. The
# installation is editable, so its place counts as well as what it is made from.
stamp=$VENV/.installed${extras:+-$extras}
state=$(pwd && cat requirements.txt pyproject.toml)
if [[ ! -f $stamp || $(<"$stamp") != "$state" ]]; then
  echo "Installing drnet_jax${extras:+[$extras]} into $VENV: minutes, the first time."
  "$python" -m pip install --disable-pip-version-check --editable ".${extras:+[$extras]}"
  echo "$state" >"$stamp"
fi
