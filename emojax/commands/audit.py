"""`emojax audit`: images that should not be in a data set, as a table, a list and a sheet."""

import collections
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.data.reasons import REASONS, Reason
from emojax.section import UserPath

if TYPE_CHECKING:
    import numpy as np

    from emojax.data.audit import Audit, Picture

_COLUMNS = 24
_CAUTION = (
    "For research use only: pictures of people. Not for publication, nor for judging anyone shown."
)


class AuditSettings(WritesRun):
    """Settings of an audit."""

    data: settings.Data = settings.Data()
    reasons: tuple[Reason, ...] = Field(
        default=REASONS, description="what to look for", min_length=1
    )
    near: int = Field(
        default=12, ge=0, le=24, description="bits of 120 by which near duplicates may differ"
    )
    exclude: bool = Field(
        default=False,
        description="also write exclude.csv, for --data.exclude of the other commands",
    )
    sheet: bool = Field(
        default=False, description="also write sheet.png, the images found, to look at"
    )
    out: UserPath = out_folder("audit")


def audit(settings: AuditSettings) -> None:
    """Looks through every split of a data set into a run folder."""
    from emojax import store
    from emojax.commands import opening
    from emojax.commands.console import progress, say_written
    from emojax.data import audit as auditing

    data = settings.data
    thumbnails: dict[str, np.ndarray] = {}

    def keep(picture: "Picture", gray: "np.ndarray") -> None:
        thumbnails[picture.file] = gray

    with opening.open_run(settings, "audit") as run, progress("audit") as bar:
        with run.timed("audit"):
            result = auditing.audit(
                auditing.pictures(data.path, data.kind, limit=data.limit),
                reasons=settings.reasons,
                near=settings.near,
                keep=keep if settings.sheet else None,
                progress=lambda done: bar(done, None),
            )
        rows = result.findings
        header = ["file", "split", "label", "reason", "detail"]
        store.write_csv(run.folder / "audit.csv", header, (row[:5] for row in rows))
        if settings.exclude:
            header = ["file", "reason", "source", "detail"]
            named = ([row.id, row.reason, row.file, row.detail] for row in rows if row.id)
            store.write_csv(run.folder / "exclude.csv", header, named)
        if settings.sheet:
            _write_sheet(result, thumbnails, run.folder / "sheet.png")
        summary = {"images": result.images, "found": _counts(result)}
        store.write_json(run.folder / "summary.json", summary)
    _print(result)
    say_written(settings.out)


def _counts(result: "Audit") -> dict[str, int]:
    """Findings by reason."""
    counts = collections.Counter(row.reason for row in result.findings)
    return {reason: counts[reason] for reason in REASONS}


def _print(result: "Audit") -> None:
    from rich.table import Table

    from emojax.commands.console import console, say

    splits = list(result.images)
    table = Table("", *(split or "unreadable" for split in splits), "all")
    for reason in REASONS:
        counts = collections.Counter(row.split for row in result.findings if row.reason == reason)
        table.add_row(reason, *(str(counts[split]) for split in splits), str(counts.total()))
    table.add_section()
    images = sum(result.images.values())
    table.add_row("images", *map(str, result.images.values()), str(images))
    console.print(table)
    files = {row.file for row in result.findings}
    say(f"{len(files)} of {images} images found; none was changed")


def _write_sheet(result: "Audit", thumbnails: "dict[str, np.ndarray]", path: Path) -> None:
    """The images found, by reason and in the order of audit.csv, as one picture."""
    import numpy as np
    from PIL import Image

    from emojax.data.audit import SIDE
    from emojax.synthetic.faces import sheet

    width = _COLUMNS * (SIDE + 2)
    parts = [_line_of_text(_CAUTION, width)]
    for reason in REASONS:
        rows = [row for row in result.findings if row.reason == reason]
        pictures = [thumbnails[row.file] for row in rows if row.file in thumbnails]
        if pictures:
            title = f"{reason.replace('_', ' ')}: {len(pictures)}"
            parts.append(_line_of_text(title, width))
            parts.append(sheet(np.stack(pictures)[..., None], _COLUMNS))
    Image.fromarray(np.concatenate(parts)).save(path)


def _line_of_text(text: str, width: int) -> "np.ndarray":
    """A text as a white strip of 16 pixels' height."""
    import numpy as np
    from PIL import Image, ImageDraw

    strip = Image.new("L", (width, 16), 255)
    ImageDraw.Draw(strip).text((2, 2), text, fill=0)
    return np.asarray(strip)


COMMAND = Command(
    "audit",
    "find blank, placeholder, repeated, leaked and unreadable images, in raw FER2013 too",
    AuditSettings,
    audit,
)
