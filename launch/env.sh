# shellcheck shell=bash
# The environment that the launchers share. Sourced, not run.
#
#   VENV           the virtual environment; default: .venv in the repository
#   JAX_PLATFORMS  where JAX computes, such as "cpu", "cuda,cpu" or "tpu,cpu"; default: "cuda,cpu"
#                  where nvidia-smi finds a GPU, and JAX's own choice elsewhere
#   DRY_RUN        1: print what would be run

# Paths in a launcher's arguments, and in these variables, are relative to the caller's directory.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit

VENV=${VENV:-$root/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
export VENV
# shellcheck disable=SC2034  # for the launchers
python=$VENV/bin/python
# Networks of one's own are found in the repository, and in the caller's directory before.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Named explicitly, a GPU that JAX cannot use is told at the start of every run.
if [[ -z ${JAX_PLATFORMS:-} ]] && nvidia-smi -L >/dev/null 2>&1; then
  JAX_PLATFORMS=cuda,cpu
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-}

case $JAX_PLATFORMS in
  cuda* | gpu* | tpu*)
    # Compiled programs outlive the process. Not so on the CPU: jaxlib 0.10.1 loads its own entries
    # with several lines of "machine type doesn't match" each (jax-ml/jax#38445).
    export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/drnet_jax/xla}
    ;;
  *)
    # On the CPU a step spends more time on fresh memory pages than on some of its arithmetic: glibc
    # hands large freed blocks back to the kernel, which zeroes them again page by page. Hence huge
    # pages, and blocks that stay with the process (docs/cpu.md has what they are worth). Other C
    # libraries ignore these variables.
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
    export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-8589934592}
    export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
    # One arena: else what one of XLA's threads frees, another cannot take, and every step asks the
    # kernel for new pages.
    export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1}
    ;;
esac

# Runs a command; with DRY_RUN=1 only prints it.
run() {
  if [[ ${DRY_RUN:-0} != 0 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
