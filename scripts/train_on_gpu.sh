#!/usr/bin/env bash
# VGGNet on all of FER2013 on one GPU, then its accuracy on both test splits without copies of training images, and the
# weights in bfloat16 shards small enough to carry. One command, from a raw or a prepared FER2013:
#
#   scripts/train_on_gpu.sh FER2013 OUT [more flags of `emojax train`]
#
# Started again with the same OUT, it keeps the data that it has prepared; `--overwrite` replaces a finished training.
# RECIPE=vggnet takes the published recipe; STEPS_ONLY=1 takes 512 images and one epoch, to try the script anywhere.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
data=$1 out=$2
shift 2
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/compilations}
mkdir -p "$out"
if [ ! -d "$data/fer2013" ]; then
    [ -d "$out/data/fer2013" ] || emojax prepare --source "$data" --out "$out/data"
    data=$out/data
fi
few=()
if [ -n "${STEPS_ONLY:-}" ]; then few=(--data.limit 512 --train.epochs 1 --train.size small); fi
emojax train --config "$here/configs/fer2013_${RECIPE:-modern}.yaml" --data.path "$data" \
    --cache "$out/cache" --out "$out/train" "${few[@]}" "$@"
emojax evaluate --data.path "$data" --target.weights "$out/train/model.safetensors" --evaluate.protocol tencrop \
    --copies-of training --out "$out/evaluate" --overwrite
python "$here/scripts/shard_weights.py" "$out/train/model.safetensors" "$out/weights"
