"""What `emojax audit` writes: the table of findings and, when asked for, the list to exclude and a sheet to look at."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from emojax import store
from emojax.commands.console import console, progress, say
from emojax.data import audit as engine
from emojax.data.audit import REASONS, SIDE, Audit, Picture
from emojax.synthetic.faces import sheet

_COLUMNS = 24
_CAUTION = "For research use only: pictures of people. Not for publication, nor for judging anyone shown."


def audit(settings: Any) -> None:
    """Looks through every split of a data set into a run folder."""
    data = settings.data
    thumbs: dict[str, np.ndarray] = {}

    def keep(picture: Picture, gray: np.ndarray) -> None:
        thumbs[picture.file] = gray

    with (
        store.run_folder(settings.out, "audit", settings.model_dump(mode="json"), overwrite=settings.overwrite) as run,
        progress("audit") as bar,
    ):
        with run.timed("audit"):
            found = engine.audit(
                engine.pictures(data.path, data.kind, limit=data.limit),
                reasons=settings.reasons,
                near=settings.near,
                keep=keep if settings.sheet else None,
                progress=lambda done: bar(done, None),
            )
        rows = found.findings
        store.write_csv(run.folder / "audit.csv", ["file", "split", "label", "reason", "detail"], (row[:5] for row in rows))
        if settings.exclude:
            named = ([row.id, row.reason, row.file, row.detail] for row in rows if row.id)
            store.write_csv(run.folder / "exclude.csv", ["file", "reason", "source", "detail"], named)
        if settings.sheet:
            _sheet(found, thumbs, run.folder / "sheet.png")
        summary = {"images": found.images, "found": _counts(found)}
        store.write_json(run.folder / "summary.json", summary)
    _print(found)


def _counts(found: Audit) -> dict[str, int]:
    counts = collections.Counter(row.reason for row in found.findings)
    return {reason: counts[reason] for reason in REASONS}


def _print(found: Audit) -> None:
    splits = list(found.images)
    table = Table("", *(split or "unreadable" for split in splits), "all")
    for reason in REASONS:
        of = [sum(row.reason == reason and row.split == split for row in found.findings) for split in splits]
        table.add_row(reason, *map(str, of), str(sum(of)))
    table.add_section()
    table.add_row("images", *map(str, found.images.values()), str(sum(found.images.values())))
    console.print(table)
    files = {row.file for row in found.findings}
    say(f"{len(files)} of {sum(found.images.values())} images found; none was changed")


def _sheet(found: Audit, thumbs: dict[str, np.ndarray], path: Path) -> None:
    """The images found, by reason and in the order of audit.csv, as one picture."""
    width = _COLUMNS * (SIDE + 2)
    parts = [_line(_CAUTION, width)]
    for reason in REASONS:
        pictures = [thumbs[row.file] for row in found.findings if row.reason == reason and row.file in thumbs]
        if pictures:
            page = sheet(np.stack(pictures)[..., None], _COLUMNS)
            parts += [_line(f"{reason.replace('_', ' ')}: {len(pictures)}", width), page]
    Image.fromarray(np.concatenate(parts)).save(path)


def _line(text: str, width: int) -> np.ndarray:
    line = Image.new("L", (width, 16), 255)
    ImageDraw.Draw(line).text((2, 2), text, fill=0)
    return np.asarray(line)
