"""How fast this machine reads probe images: array_record sets of TFDS and folders of JPEG files."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Results
from PIL import Image

# Sizes for a first look.
QUICK = "--images 1024 --seconds 1"


@dataclasses.dataclass
class Options:
    """Images a second through the batches that a probe reads, without a device behind them."""

    images: int = 8192
    """images of 48×48 in a set; of 224×224 an eighth as many"""
    batch: int = 256
    seconds: float = 5.0
    """how long each is read, at least once through"""
    chip: float = 3000.0
    """images a second that a chip takes, to say how many this machine feeds (docs/scale.md)"""
    out: Path | None = None


def measure(options: Options) -> Results:
    """Images a second, of this machine and of a second of its processor's time, for each set."""
    from emojax.data import folder, tfds_set

    few = options.images // 8
    results = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)

        def add(what: str, images: Any) -> None:
            results.append({"what": what} | _read(images, options))

        for side, count in ((48, options.images), (224, few)):
            for encoding in ("none", "bytes"):
                _prepare(root / f"{side}-{encoding}", side, count, encoding)
                data = tfds_set.load(root / f"{side}-{encoding}", "train")
                add(f"array_record {side}×{side}, encoding {encoding}", data.images)
        _write_jpegs(root / "jpeg", 224, few)
        add("JPEG 224×224 as they are", folder.load(root / "jpeg", "all").images)
        add("JPEG 224×224, resized to 48 here", folder.load(root / "jpeg", "all", size=48).images)
    results.append({"what": "resize 224 → 48 on the device"} | _resize(options))
    return results


def _rates(images: int, seconds: float, processor: float, options: Options) -> dict[str, float]:
    rate = images / seconds
    return {
        "images_per_second": rate,
        "per_second_of_a_core": images / processor,
        "cores_busy": processor / seconds,
        "chips_fed": rate / options.chip,
    }


def _read(images: Any, options: Options) -> dict[str, float]:
    from emojax.data.loader import batches

    count = images.shape[0]
    for _ in batches(images, options.batch):  # files into the disk's cache
        pass
    read, start, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < options.seconds:
        for batch in batches(images, options.batch):
            read += int((batch.indices < count).sum())
    now = time.perf_counter(), time.process_time()
    return _rates(read, now[0] - start, now[1] - processor, options)


def _resize(options: Options) -> dict[str, float]:
    """Pillow's resize as the probe's step does it, by itself."""
    import jax

    from emojax.ops.image import resize_pil

    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, 224, 224, 1), np.uint8)
    resize: Callable[[Any], Any] = jax.jit(lambda batch: resize_pil(batch, (48, 48), "bicubic"))
    jax.block_until_ready(resize(pixels))
    done, start, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < options.seconds:
        jax.block_until_ready(resize(pixels))
        done += options.batch
    return _rates(done, time.perf_counter() - start, time.process_time() - processor, options)


def _prepare(place: Path, side: int, count: int, encoding: str) -> None:
    """A data set of TFDS with images of noise."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    rng = np.random.default_rng(0)
    info = tfds.core.DatasetInfo
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(
                shape=(side, side, 1), dtype=np.uint8, encoding=tfds.features.Encoding(encoding)
            ),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
    )

    class Noise(tfds.core.GeneratorBasedBuilder):
        """Images of noise."""

        VERSION = tfds.core.Version("1.0.0")
        name = f"noise_{side}_{encoding}"

        def _info(self) -> Any:
            return info(builder=self, description="noise", features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for row in range(count):
                yield (
                    row,
                    {
                        "image": rng.integers(0, 256, (side, side, 1), np.uint8),
                        "label": row % 2,
                    },
                )

    builder = Noise(data_dir=place, file_format="array_record")
    builder.download_and_prepare(download_dir=place / "downloads")


def _write_jpegs(place: Path, side: int, count: int) -> None:
    """A folder of classes with smooth images, as photographs compress."""
    rng = np.random.default_rng(0)
    for row in range(count):
        file = place / f"class{row % 2}" / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, quality=90)
