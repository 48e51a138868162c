"""Makes the weights that ship for real faces from a run of `emojax train`.

    python scripts/build_fer2013_weights.py RUN/model.safetensors
    emojax evaluate --target.weights fer2013-compact … --out TEST     # see docs/model-card.md
    cp TEST/summary.json emojax/data/assets/fer2013_compact.json

Parameters become bfloat16 (BatchNorm's statistics stay float32), which halves the file. Class names
and provenance go with them.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import tyro

from emojax.data import classes
from emojax.data.named_weights import FER2013_COMPACT, NAMED
from emojax.data.provenance import read_provenance, to_metadata
from emojax.data.weights import load_network, read_arrays
from emojax.errors import InputError
from emojax.store import save_arrays


def main(weights: Path, /, out: Path = NAMED[FER2013_COMPACT]) -> None:
    """Writes the file, and says how large it is."""
    uses = read_provenance(weights)
    names = load_network(weights).config.class_names
    if uses is None or names is None:
        raise InputError(f"{weights} does not say what it was trained on, or its classes")
    kept = ("running_mean", "running_var", "num_batches_tracked")
    arrays = {
        name: array if name.endswith(kept) else array.astype(ml_dtypes.bfloat16)
        for name, array in read_arrays(weights).items()
    }
    out.parent.mkdir(exist_ok=True)
    save_arrays(arrays, out, metadata=classes.to_metadata(names) | to_metadata(uses))
    count = sum(np.size(array) for array in arrays.values())
    print(f"{out}: {count:,} numbers, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    tyro.cli(main)
