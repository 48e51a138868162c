"""Packs a weights file into bfloat16 shards of at most 15 MB each, in Hugging Face's layout;
`--back` puts them together.

python scripts/shard_weights.py model.safetensors weights/
python scripts/shard_weights.py weights/ model.safetensors --back
"""

import json
from pathlib import Path

import tyro

INDEX = "model.safetensors.index.json"


def shard(source: Path, target: Path, *, megabytes: float = 15.0) -> None:
    """One file of float32 arrays → shards; an array larger than a shard is cut along its first axis
    (`name@part`).
    """
    import ml_dtypes
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    from emojax.store import atomic_folder, write_json

    limit = int(megabytes * 1e6) - 65_536  # room for the header
    pieces = {}
    for name, array in load_file(source).items():
        array = array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array  # noqa: PLW2901
        parts = -(-array.nbytes // limit)
        for number, part in enumerate(np.array_split(array, parts) if parts > 1 else [array]):
            pieces[f"{name}@{number}" if parts > 1 else name] = part
    shards, size = [{}], 0
    for name, part in pieces.items():
        if shards[-1] and size + part.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = part
        size += part.nbytes
    with safe_open(source, "numpy") as file:
        metadata = file.metadata()
    with atomic_folder(target, _check_shards) as folder:
        names = [
            f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            for number in range(len(shards))
        ]
        for name, arrays in zip(names, shards, strict=True):
            save_file(arrays, folder / name, metadata)
        where = {key: name for name, arrays in zip(names, shards, strict=True) for key in arrays}
        write_json(folder / INDEX, {"metadata": metadata or {}, "weight_map": where})
    print(
        f"wrote {target}: {len(shards)} shards, "
        f"{sum(part.nbytes for part in pieces.values()) / 1e6:.1f} MB"
    )


def _check_shards(target: Path) -> None:
    """Lets shards be replaced, and nothing else."""
    from emojax.outputs import check_empty

    if not target.is_dir() or any(
        p.name != INDEX and not p.match("model-?????-of-?????.safetensors")
        for p in target.iterdir()
    ):
        check_empty(target)


def join(source: Path, target: Path) -> None:
    """Shards → one file of float32 arrays."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import load_file, save_file

    index = json.loads((source / INDEX).read_text("utf-8"))
    pieces = {}
    for name in sorted({Path(name).name for name in index["weight_map"].values()}):
        pieces |= load_file(source / name)
    arrays = {}
    for name in sorted(
        pieces, key=lambda name: (name.partition("@")[0], int(name.partition("@")[2] or 0))
    ):
        part = (
            pieces[name].astype(np.float32)
            if pieces[name].dtype == ml_dtypes.bfloat16
            else pieces[name]
        )
        arrays.setdefault(name.partition("@")[0], []).append(part)
    joined = {
        name: np.concatenate(parts) if len(parts) > 1 else parts[0]
        for name, parts in arrays.items()
    }
    save_file(joined, target, index["metadata"] or None)
    print(f"wrote {target}: {len(joined)} arrays")


def main(
    source: tyro.conf.Positional[Path], target: tyro.conf.Positional[Path], /, *, back: bool = False
) -> None:
    """Shards SOURCE into TARGET, or joins the shards in SOURCE."""
    (join if back else shard)(source, target)


if __name__ == "__main__":
    tyro.cli(main)
