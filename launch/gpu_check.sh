#!/usr/bin/env bash
# Checks and measures this package on the GPU of this machine: the tests that need one device only,
# and the benchmark in bfloat16 and float32. Results go to runs/gpu_check.
#
#   ./launch/gpu_check.sh [FLAGS OF drnet_jax.benchmark ...]
#
# Later flags override: --batch 64 for a small card, --config.KEY=VALUE for other networks.
#   TESTS  the test files to run, of the repository; default: those of what runs on a device
#   PYTHON, VENV and JAX_PLATFORMS: as in setup.sh; JAX_PLATFORMS=cpu tries the script itself
set -euo pipefail
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

"$root/launch/setup.sh" dev
out=runs/gpu_check
tests=$(echo tests/test_{norm,ops,images,buckets,routing,resolutions,objectives,models,steps}.py)
mkdir -p "$out"

"$python" -c 'from drnet_jax.devices import found_devices; print(found_devices())' \
  | tee "$out/devices.txt"
# JAX passes over a GPU that it cannot use, and what would be checked is the CPU.
if grep -q '^warning' "$out/devices.txt"; then
  exit 2
fi
# shellcheck disable=SC2086  # several files
(cd "$root" && TEST_PLATFORMS=$JAX_PLATFORMS "$python" -m pytest -q ${TESTS:-$tests}) \
  | tee "$out/tests.txt" || failed=$?  # and measure all the same
"$python" -m drnet_jax.benchmark --config="$root/configs/imagenet_resnet50.py" --batch=256 \
  --dtypes=bfloat16,float32 --out="$out" "$@" | tee "$out/benchmark.txt"
echo "Results: $out/benchmark.md, $out/benchmark.json, $out/tests.txt"
exit "${failed:-0}"
