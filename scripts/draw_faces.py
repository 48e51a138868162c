"""Draws the sheets of docs/faces.md: rendered faces by emotion and by what they show.

python scripts/draw_faces.py                     # writes docs/faces_*.png
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emojax.data.classes import FER2013 as CLASSES
from emojax.synthetic import faces

DOCS = Path(__file__).parents[1] / "docs"


def page(rows: Sequence[np.ndarray], names: Sequence[str], scale: int, path: Path) -> None:
    """A row of faces [N, 48, 48, 1] behind each name."""
    grid = Image.fromarray(faces.sheet(np.concatenate(rows), len(rows[0])))
    grid = grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)
    out, step, margin = Image.new("L", (grid.width + 190, grid.height), 255), 50 * scale, 190
    out.paste(grid, (margin, 0))
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(14)
    for row, name in enumerate(names):
        pen.text((6, row * step + step // 2 - 9), name, fill=0, font=font)
    out.save(path, optimize=True)


def main() -> None:
    """Draws both."""
    people = faces.random_faces(1500, 7)
    pictures = people.render()
    by_emotion = [pictures[np.flatnonzero(people.emotions == emotion)[:12]] for emotion in range(len(CLASSES))]
    page(by_emotion, CLASSES, 2, DOCS / "faces_emotions.png")
    shown = people.attributes == faces.PRESENT
    by_attribute = [pictures[np.flatnonzero(column)[:10]] for column in shown.T]
    page(by_attribute, faces.ATTRIBUTES, 1, DOCS / "faces_attributes.png")


if __name__ == "__main__":
    main()
