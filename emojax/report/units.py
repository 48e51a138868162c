"""What the page shows of each unit beyond `dissection.csv`.

That is: its top images, best concepts, class mix and outgoing weights.

`units.npz` holds it, written by every run that labels units, so that a page can be made later from
the folder alone. Shapes: U units of all layers in a row, S images shown, N best concepts, C
classes, I images that some unit shows.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from emojax.data.decode import check_regular
from emojax.dissection.find import Profiles
from emojax.dissection.labels import Dissection
from emojax.errors import InputError
from emojax.probing.maps import Maps
from emojax.probing.network import WHOLE
from emojax.probing.record import ProbeRecord
from emojax.store import write_binary

FILE = "units.npz"
_MOST_BYTES = 1 << 30  # unpacked; 10,112 units of 28,709 images have some 20 MB
SHOWN = 16  # top images
LOWEST = 8  # images that activate least
BEST = 5  # concepts named
MIXED = 100  # top images whose classes are counted, of small sets a quarter of the images
LATER = (
    "values",
    "bottom",
    "bottom_values",
    "texts",
    "profiles",
    "map_sides",
    "map_units",
    "map_part",
    "maps",
)  # what files of older versions do not have
# Distance of unit embeddings from which CLIP sees the same picture; float32 leaves 1e-6.
_SAME = 1e-5


def _none() -> np.ndarray:
    """What a file of an older version, or a record, does not have: an array of no units."""
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Details:
    """Of every unit, what a reader wants to see of it. All arrays; names are arrays of text.

    Attributes:
      layers: names of the layers [L]; `sizes` their units [L].
      top: top images [U, S], positions in `images`, most activating first.
      same_as: earlier image of the unit's list that shows the same picture [U, S]; −1 for none.
      best: the unit's best concepts [U, N], positions in `concepts`; `best_scores` theirs, NaN
        where undefined.
      concepts: names of the concepts that some unit has among its best; `emotions` what each speaks
        for, joined by ";".
      images: number of each image in the probe set [I]; `ids` their names, `image_class` their
        classes, −1 for none.
      classes: names of the classes [C].
      mix: classes of the unit's first top images, `MIXED` or a quarter of the images [U, C].
      outgoing: weights from the units of `outgoing_layer` to the classes; both empty without such a
        layer.
      network: names of all the network's layers, dissected or not; `network_units` their units.
      values: activations of the top images [U, S].
      bottom: least activating images [U, B], positions in `images`, the lowest first; B is 0 where
        the record kept no activations. `bottom_values` theirs.

      texts: that the page can rank units by; `profiles` each unit's correlation with each [U, T].
      maps: activation maps of `map_units` [M] on their first top images [values], as `Maps` has
        them; `map_sides` their rows and columns by layer [L, 2], `map_part` what of an image they
        lie over [4]. Empty where the network was not at hand.

    What is empty here and needs no network is of a file of an older version.
    """

    layers: np.ndarray
    sizes: np.ndarray
    top: np.ndarray
    same_as: np.ndarray
    best: np.ndarray
    best_scores: np.ndarray
    concepts: np.ndarray
    emotions: np.ndarray
    images: np.ndarray
    ids: np.ndarray
    image_class: np.ndarray
    classes: np.ndarray
    mix: np.ndarray
    outgoing: np.ndarray
    outgoing_layer: np.ndarray
    network: np.ndarray
    network_units: np.ndarray
    values: np.ndarray = field(default_factory=_none)
    bottom: np.ndarray = field(default_factory=_none)
    bottom_values: np.ndarray = field(default_factory=_none)
    texts: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.str_))
    profiles: np.ndarray = field(default_factory=_none)
    map_sides: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    map_units: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    map_part: np.ndarray = field(default_factory=lambda: np.array(WHOLE))
    maps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self):
        units = int(self.sizes.sum())
        outgoing = self.outgoing_layer.tolist()
        sizes = dict(zip(self.layers.tolist(), self.sizes.tolist(), strict=True))
        shown, named, classes = (len(x) for x in (self.images, self.concepts, self.classes))
        fits = [
            self.top.shape == self.same_as.shape and len(self.top) == units,
            self.best.shape == self.best_scores.shape and len(self.best) == units,
            self.mix.shape == (units, classes),
            len(self.ids) == shown == len(self.image_class),
            len(self.emotions) in (0, named),
            len(self.network) == len(self.network_units),
            self.values.shape in (self.top.shape, (0, 0)),
            self.bottom.shape == self.bottom_values.shape and len(self.bottom) in (units, 0),
            self.profiles.shape in ((units, len(self.texts)), (0, 0)),
            len(self.profiles) > 0 or not len(self.texts),
            not outgoing or self.outgoing.shape == (sizes.get(outgoing[0]), classes),
            _lies_in(self.top, 0, shown),
            _lies_in(self.bottom, 0, shown),
            _lies_in(self.same_as, -1, self.same_as.shape[-1]),
            _lies_in(self.best, 0, named),
            _lies_in(self.image_class, -1, max(classes, 1)),
            bool(np.isfinite(self.outgoing).all() and not np.isinf(self.best_scores).any()),
            bool(np.isfinite(self.values).all() and np.isfinite(self.bottom_values).all()),
            bool((np.abs(self.profiles) <= 1).all()),
            self._maps_fit(),
        ]
        if not all(fits):
            raise ValueError("its arrays do not fit each other")

    @property
    def mapped_images(self) -> int:
        """How many of a unit's top images have a map."""
        return len(self.maps) // max(1, int(self._map_cells().sum()))

    def _map_cells(self) -> np.ndarray:
        """Cells of a map of each of `map_units`."""
        layers = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return self.map_sides.prod(axis=1)[layers[self.map_units]]

    def _maps_fit(self) -> bool:
        if not len(self.map_units):
            return not self.maps.size
        units = self.map_units
        good = [
            self.map_sides.shape == (len(self.layers), 2),
            self.map_sides.dtype.kind == "i" and _lies_in(self.map_sides, 0, 65),
            units.dtype.kind == "i" and _lies_in(units, 0, int(self.sizes.sum())),
            self.maps.dtype == np.uint8 and self.maps.ndim == 1,
            self.map_part.shape == (4,) and bool((np.abs(self.map_part) <= 100).all()),
        ]
        if not all(good):
            return False
        cells = self._map_cells()
        images = self.mapped_images
        return bool(cells.min() > 0 and 0 < images <= self.top.shape[1]) and (
            len(self.maps) == images * int(cells.sum())
        )


def _lies_in(array: np.ndarray, low: int, high: int) -> bool:
    """Whether all of an array of positions is in range, `high` left out."""
    return array.size == 0 or bool(array.min() >= low and array.max() < high)


def collect(
    dissection: Dissection,
    network: Mapping[str, int] | None = None,
    outgoing: np.ndarray | None = None,
    profiles: Profiles | None = None,
    maps: Maps | None = None,
) -> Details:
    """Details of a dissection.

    Args:
      dissection: the dissection.
      network: units of all the network's layers, in order, the last one the classes; those
        dissected when None.
      outgoing: weights [U, C] from the units of the layer before the last to the classes.
      profiles: of the units, to search and compare them by.
      maps: where in their images units are active.
    """
    record = dissection.record
    # Where the top images are all images, their classes say nothing.
    longest = min(MIXED, record.images, record.top.values.shape[2])
    mixed = min(longest, max(SHOWN, record.images // 4))
    values, rows = map(np.asarray, record.top_k(longest))
    lowest, least = _lowest(record)
    both = np.concatenate([rows[:, :SHOWN], lowest], axis=1)
    images, places = np.unique(both, return_inverse=True)
    top, bottom = np.split(places.reshape(both.shape), [both.shape[1] - lowest.shape[1]], axis=1)
    order = np.argsort(-dissection.ranked, axis=1, kind="stable")[:, :BEST]
    named, best = np.unique(order, return_inverse=True)
    emotions = dissection.concepts.emotions
    classes = len(record.classes)
    network = dict(network or record.layers)
    before_last = list(network)[-2:-1]
    known = (
        outgoing is not None
        and before_last
        and before_last[0] in record.layers
        and outgoing.shape[1] == classes
    )
    return Details(
        layers=np.array(list(record.layers)),
        sizes=np.array(list(record.layers.values())),
        top=top.astype(np.int32),
        same_as=_same(np.asarray(record.embeddings[images]), top),
        best=best.reshape(order.shape).astype(np.int32),
        best_scores=np.take_along_axis(dissection.scores, order, axis=1),
        concepts=np.array([dissection.concepts.concepts[i] for i in named]),
        emotions=np.array(
            [] if emotions is None else [";".join(emotions[i]) for i in named], dtype=np.str_
        ),
        images=images.astype(np.int64),
        ids=np.array([record.ids[int(i)] for i in images]),
        image_class=np.full(len(images), -1) if record.labels is None else record.labels[images],
        classes=np.array(record.classes, dtype=np.str_),
        mix=_class_mix(record, rows[:, :mixed]),
        outgoing=np.asarray(outgoing, np.float32) if known else np.zeros((0, classes), np.float32),
        outgoing_layer=np.array(before_last if known else [], dtype=np.str_),
        network=np.array(list(network)),
        network_units=np.array(list(network.values())),
        values=values[:, :SHOWN],
        bottom=bottom.astype(np.int32),
        bottom_values=least,
        **({} if profiles is None else _profiles(profiles)),
        **({} if maps is None else _maps(maps)),
    )


def _maps(maps: Maps) -> dict[str, np.ndarray]:
    return {
        "map_sides": maps.sides,
        "map_units": maps.units,
        "map_part": np.array(maps.part),
        "maps": maps.values,
    }


def _class_mix(record: ProbeRecord, rows: np.ndarray) -> np.ndarray:
    """Classes of each unit's images [U, C]; zeros without labels."""
    classes = len(record.classes)
    if record.labels is None:
        return np.zeros((len(rows), classes), np.int32)
    cells = np.arange(len(rows))[:, None] * classes + record.labels[rows]
    counts = np.bincount(cells.ravel(), minlength=len(rows) * classes)
    return counts.reshape(len(rows), classes).astype(np.int32)


def _profiles(profiles: Profiles) -> dict[str, np.ndarray]:
    """Profiles as a file has them: float16 tells correlations apart by a thousandth."""
    correlation = np.clip(np.nan_to_num(profiles.correlation), -1, 1).astype(np.float16)
    return {"texts": np.array(profiles.texts, dtype=np.str_), "profiles": correlation}


def _lowest(record: ProbeRecord) -> tuple[np.ndarray, np.ndarray]:
    """The images that activate each unit least [U, B], the lowest first, and their activations.

    Exact, ties to the lower index; from kept activations, as a record's lists are of the highest.
    Without them B is 0.
    """
    units = sum(record.layers.values())
    if record.activations is None:
        return np.zeros((units, 0), np.int32), np.zeros((units, 0), np.float32)
    shown = min(LOWEST, record.images)
    indices = np.empty((units, shown), np.int32)
    for start in range(0, units, 256):  # bounds the memory of their order
        part = np.asarray(record.activations[:, start : start + 256])
        indices[start : start + 256] = np.argsort(part, axis=0, kind="stable")[:shown].T
    return indices, np.asarray(record.activations)[indices, np.arange(units)[:, None]]


def _same(embeddings: np.ndarray, top: np.ndarray) -> np.ndarray:
    """For each of a unit's images [U, S] the first earlier one with the same embedding, or −1."""
    earlier = np.full(top.shape, -1, np.int8)
    later = np.triu(np.ones((top.shape[1],) * 2, bool), 1).T  # [S, S]: column comes before row
    for start in range(0, len(top), 256):
        group = embeddings[top[start : start + 256]].astype(np.float64)
        squares = (group**2).sum(axis=2)
        apart = (
            squares[:, :, None] + squares[:, None, :] - 2 * np.einsum("usd,utd->ust", group, group)
        )
        same = (apart < _SAME**2) & later
        earlier[start : start + 256] = np.where(same.any(axis=2), same.argmax(axis=2), -1)
    return earlier


def save(details: Details, folder: Path) -> None:
    """Writes `units.npz`, whole or not at all."""
    write_binary(folder / FILE, lambda file: np.savez_compressed(file, **asdict(details)))


def load(folder: Path) -> Details | None:
    """Reads `units.npz`; None where a run has none.

    Raises:
      InputError: the file is damaged or not what `save` writes.
    """
    path = folder / FILE
    if not path.exists():
        return None
    check_regular(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            unpacked = sum(entry.file_size for entry in file.zip.infolist())
            if unpacked > _MOST_BYTES:
                raise ValueError(f"{unpacked} bytes when unpacked, more than {_MOST_BYTES}")
            names = [field.name for field in fields(Details)]
            kept = [name for name in names if name in file or name not in LATER]
            return Details(**{name: file[name] for name in kept})
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(
            f"{path}: {' '.join(str(error).split()) or 'damaged'}; run again"
        ) from None
