"""`emojax predict`: a table of what a network sees in images, one row for every image.

The table is built beside `--out` under a hidden name, with a note of what is done; a job that was
stopped resumes from it, and ends with the same file as one that was not.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from pydantic import Field

from emojax import interruption, outputs, settings
from emojax.commands.base import Command
from emojax.errors import InputError
from emojax.section import Positive, Section, Side, UserPath

if TYPE_CHECKING:
    import numpy as np

    from emojax.data.sources import Read, Source
    from emojax.models.classifier import Classifier
    from emojax.probing.network import Network
    from emojax.training.predict import Prediction

_FORMAT = 1  # of the unfinished table; part of its key


class PredictSettings(Section):
    """Settings of a prediction."""

    paths: tuple[str, ...] = Field(
        default=(),
        description="images: files, folders, patterns, parquet files, sets saved by Hugging Face "
        "datasets, prepared sets",
    )
    target: settings.Target = settings.Target()
    labels: UserPath | None = Field(
        default=None,
        description="run folder of dissect, run or demo: its labels name the units that pushed "
        "each decision",
    )
    units: Positive = Field(default=3, description="units to name for each image")
    near_tie: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="a decision is marked when the second class is this near in probability",
    )
    size: Side = Field(default=48, description="side of the square that image files are brought to")
    detector: str | None = Field(
        default=None,
        description="package.module:function of yours that finds faces: an RGB image, uint8 "
        "[H, W, 3], to boxes [N, 4] of left, top, width, height; the largest is cut out",
    )
    batch: Positive = Field(default=256, description="images at once; does not change results")
    out: UserPath = Field(
        default=Path("predictions.csv"), description="table to write: .csv, or .parquet"
    )
    overwrite: bool = Field(default=False, description="replace the file that --out names")


def predict(settings: PredictSettings) -> None:
    """Writes a row for every image."""
    import time

    from emojax.commands import opening
    from emojax.commands.console import progress, say
    from emojax.commands.factory import user_function
    from emojax.data.sources import open_sources

    _check(settings)
    model = opening.open_target(settings.target)
    channels = _channels(model)
    names = _class_names(settings, model, channels)
    labels = _unit_labels(settings.labels, model)
    paths = [os.path.expanduser(path) for path in settings.paths]
    name = settings.detector
    detector = None if name is None else user_function("--detector", name)
    sources = open_sources(paths, settings.size, channels, detector)
    total = sum(len(source.names) for source in sources)
    interruption.begin_work()
    opening.name_devices()
    with _Table.open(settings, _key(settings, model, names, labels, sources)) as table:
        if not table.rows:
            table.add([["file", "label", *names, "units", "near_tie", "reason"]], images=0)
        before = table.rows
        if before:
            say(f"resuming after {before} of {total} images")
        start = time.perf_counter()
        unreadable = 0
        with progress("predict") as bar:
            for read, prediction in _predictions(settings, model, sources, before):
                rows = list(_rows(settings, names, labels, read, prediction))
                table.add(rows, images=len(rows))
                unreadable += sum(bool(row[-1]) for row in rows)
                bar(table.rows, total)
        seconds = time.perf_counter() - start
        table.finish(names)
    done = total - before
    say(f"predict: {done} images in {seconds:.1f} s ({done / seconds:.1f} images/s)")
    if unreadable:
        say(f"without a result: {unreadable}; the column `reason` says why")
    say(f"wrote {settings.out}: {total} rows")


def _check(settings: PredictSettings) -> None:
    """Refuses, before any work, what cannot be done.

    Raises:
      InputError: no paths, another ending than those known, or something is lost by writing.
    """
    import jax

    if not settings.paths:
        raise InputError("name images: emojax predict PATH... --target.weights FILE --out FILE.csv")
    if settings.out.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {settings.out}: name a file that ends in .csv or .parquet")
    if os.path.lexists(settings.out) and (settings.out.is_dir() or not settings.overwrite):
        raise InputError(f"{settings.out} is there already; name another file or use --overwrite")
    if settings.out.suffix == ".parquet":
        from emojax.tables import import_arrow

        import_arrow("writing parquet")
    if jax.process_count() > 1:
        raise InputError("emojax predict is one process; give every process images of its own")


def _channels(model: "Classifier | Network") -> int:
    """Channels of the images that are read for the network: colour for a factory's."""
    from emojax.probing.network import Network

    return 3 if isinstance(model, Network) else model.config.channels


def _class_names(
    settings: PredictSettings, model: "Classifier | Network", channels: int
) -> Sequence[str]:
    """Names of the outputs; says which are taken where nothing names them.

    Raises:
      InputError: the network has no outputs to name, being an image tower.
    """
    from emojax.commands import opening
    from emojax.commands.console import say
    from emojax.data.classes import FER2013
    from emojax.probing.network import Network

    if isinstance(model, Network):
        classes, names = model.classes((settings.size, settings.size, channels)), None
    else:
        classes, names = model.config.classes, model.config.class_names
    if not classes:
        name = opening.name_of(settings.target)
        raise InputError(f"{name} is an image tower, without classes; predict takes classifiers")
    if names is None:
        names = FER2013 if classes == len(FER2013) else None
        names = names or tuple(f"class {number}" for number in range(classes))
        say(f"the weights do not name their classes, taken to be {', '.join(names)}")
    return names


def _unit_labels(run: Path | None, model: "Classifier | Network") -> list[str] | None:
    """What each unit before the logits is called: layer, number, concept; None without labels.

    Raises:
      InputError: the run folder is none, or has no labels for this network's layer.
    """
    from emojax.models.classifier import last_hidden
    from emojax.probing.network import Network
    from emojax.report.results import read_run

    if run is None:
        return None
    if isinstance(model, Network):
        raise InputError("--labels is for networks of files, not for a factory's")
    layer = last_hidden(model)
    if layer is None:
        raise InputError(
            f"--labels names units that feed the logits, and a {type(model).__name__} has no layer "
            "of such units"
        )
    table = read_run(run).units
    concepts = [
        concept
        for name, concept in zip(table.get("layer", ()), table.get("concept", ()), strict=True)
        if name == layer
    ]
    units = model.config.units()[layer]
    if len(concepts) != units:
        raise InputError(
            f"{run} labels {len(concepts)} units of {layer}, the network has {units}; give the run "
            "folder of this network, with that layer among --probe.layers"
        )
    return [f"{layer}:{unit} {concept}" for unit, concept in enumerate(concepts)]


def _key(
    settings: PredictSettings,
    model: "Classifier | Network",
    names: Sequence[str],
    labels: Sequence[str] | None,
    sources: "Sequence[Source]",
) -> str | None:
    """Content key of all that shapes the table; a stopped one with another key is not used.

    None where it cannot be known: a factory's network without a key of the user's.
    """
    from emojax.probing.network import as_network
    from emojax.store import content_key
    from emojax.training.predict import batch_size

    # Names of files need not be UTF-8.
    images = [
        [[os.fsencode(name).hex() for name in source.names], list(source.shape)]
        for source in sources
    ]
    shaping = [
        settings.near_tie,
        settings.units,
        settings.detector,
        batch_size(settings.batch),
    ]
    network = as_network(model).key
    if network is None:
        return None
    return content_key([_FORMAT, shaping, network, list(names), list(labels or ()), images])


def _predictions(
    settings: PredictSettings,
    model: "Classifier | Network",
    sources: "Sequence[Source]",
    skip: int,
) -> "Iterator[tuple[Read, Prediction]]":
    """What was read and what the network says of it, batch by batch, after the first images."""
    from collections import deque

    from emojax.data.sources import read_batches
    from emojax.training import predict as predicting

    size = predicting.batch_size(settings.batch)
    for source in sources:
        first = min(skip, len(source.names))
        skip -= first
        waiting: deque[Read] = deque()  # read, and on their way through the network

        def images(
            source: "Source" = source, first: int = first, waiting: "deque[Read]" = waiting
        ) -> "Iterator[np.ndarray]":
            for read in read_batches(source, size, first):
                waiting.append(read)
                yield read.images

        for prediction in predicting.predict(model, images(), size=size):
            yield waiting.popleft(), prediction


def _rows(
    settings: PredictSettings,
    names: Sequence[str],
    labels: Sequence[str] | None,
    read: "Read",
    prediction: "Prediction",
) -> Iterator[list[Any]]:
    import numpy as np

    # Once for the batch, not in every row.
    classes, margins = prediction.classes, prediction.margins
    finite = np.all(np.isfinite(prediction.probabilities), axis=1).tolist()
    blank = [""] * len(names)
    overflow = "the network's logits are beyond float32: its weights are too large"
    for row, (file, unread) in enumerate(zip(read.names, read.reasons, strict=True)):
        reason = unread or ("" if finite[row] else overflow)
        if reason:
            yield [file, "", *blank, "", "", reason]
            continue
        units = ""
        if labels is not None and prediction.pushes is not None:
            pushes = prediction.pushes[row]
            strongest = _largest(pushes, settings.units)
            units = "; ".join(f"{labels[unit]} {pushes[unit]:+.3g}" for unit in strongest)
        near_tie = "true" if margins[row] < settings.near_tie else "false"
        yield [file, names[classes[row]], *prediction.probabilities[row], units, near_tie, ""]


def _largest(values: "np.ndarray", count: int) -> "np.ndarray":
    """Positions of the `count` largest of finite values, largest first; the first of equals."""
    import numpy as np

    if count >= len(values):
        return (-values).argsort(kind="stable")
    # To sort all units of a wide layer takes longer than to read the image.
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return candidates[(-values[candidates]).argsort(kind="stable")[:count]]


class _Progress(NamedTuple):
    """What of the unfinished table is whole."""

    rows: int
    size: int


class _Table:
    """The unfinished table: csv under a hidden name, and a note of how much of it is whole."""

    def __init__(self, settings: PredictSettings, key: str | None):
        self._out = settings.out
        self._key = key
        self._part = settings.out.with_name(f".{settings.out.name}.part")
        self._note = settings.out.with_name(f".{settings.out.name}.part.json")
        done = self._read_note()
        self.rows = done.rows
        self._part.parent.mkdir(parents=True, exist_ok=True)
        outputs.sweep_files(self._part.parent)
        self._file: BinaryIO = open(self._part, "r+b" if done.size else "wb")  # noqa: SIM115
        # What came after the note may be half a row.
        self._file.truncate(done.size)
        self._file.seek(done.size)

    @classmethod
    def open(cls, settings: PredictSettings, key: str | None) -> "_Table":
        """The table that was stopped, if its key is this one; else a new one."""
        return cls(settings, key)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_note(self) -> _Progress:
        try:
            note = json.loads(self._note.read_text("utf-8"))
            size = self._part.stat().st_size
        except (OSError, ValueError):
            return _Progress(0, 0)
        if self._key is None or not isinstance(note, dict) or note.get("key") != self._key:
            return _Progress(0, 0)
        # Before the first row not even the header is certain.
        fits = note["rows"] > 0 and note["bytes"] <= size
        return _Progress(note["rows"], note["bytes"]) if fits else _Progress(0, 0)

    def add(self, rows: Sequence[Sequence[Any]], *, images: int) -> None:
        """Appends rows and notes that they are whole."""
        from emojax.store import guarded_rows, write_binary

        text = io.StringIO(newline="")
        # Parquet, which is made of these rows, is nothing that a spreadsheet computes.
        safe = guarded_rows(rows) if self._out.suffix == ".csv" else rows
        csv.writer(text, lineterminator="\n").writerows(safe)
        # Names of files need not be UTF-8.
        self._file.write(text.getvalue().encode("utf-8", "backslashreplace"))
        self._file.flush()
        self.rows += images
        note = {"key": self._key, "rows": self.rows, "bytes": self._file.tell()}
        # The user's folder may hold a hundred thousand images, so it is swept once, at the start.
        write_binary(self._note, lambda file: file.write(json.dumps(note).encode()), sweep=False)

    def finish(self, names: Sequence[str]) -> None:
        """Puts the whole table where it belongs."""
        self._file.close()
        if self._out.suffix == ".parquet":
            _to_parquet(self._part, self._out, names)
            self._part.unlink()
        else:
            os.replace(self._part, self._out)
        self._note.unlink()


def _to_parquet(table: Path, out: Path, names: Sequence[str]) -> None:
    """A table in csv as parquet, a piece at a time."""
    from pyarrow import csv as arrow_csv

    from emojax.store import write_binary
    from emojax.tables import import_arrow

    arrow = import_arrow("writing parquet")
    types = {name: arrow.string() for name in ("file", "label", "units", "reason")}
    types |= {name: arrow.float32() for name in names} | {"near_tie": arrow.bool_()}
    convert = arrow_csv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=False
    )
    parse = arrow_csv.ParseOptions(newlines_in_values=True)

    def write(file: BinaryIO) -> None:
        with (
            arrow_csv.open_csv(table, parse_options=parse, convert_options=convert) as pieces,
            arrow.parquet.ParquetWriter(file, pieces.schema) as writer,
        ):
            for piece in pieces:
                writer.write_batch(piece)

    write_binary(out, write)


COMMAND = Command(
    "predict",
    "what a network sees in images: a table (emojax predict PATH... --out FILE.csv)",
    PredictSettings,
    predict,
    positional="--paths",
)
