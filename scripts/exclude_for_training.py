"""Lists training images to leave out, so that the test splits of a prepared FER2013 stay whole.

emojax audit --data.path FER2013 --out AUDIT
python scripts/exclude_for_training.py FER2013 AUDIT/audit.csv exclude.csv

`emojax audit --exclude` names the copy in the test split; to compare with figures of others, the
test must keep it and training must do without its copies. The list holds the training images that
the audit names (blank, placeholder, repeated), those that are linked to a test image by pairs of
repeats, and those within the audit's distance of a test image.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import tyro

REPEATS = ("duplicate", "near_duplicate", "leak")
TRAINING = "training"


def linked_to_tests(rows: Sequence[dict[str, str]]) -> set[str]:
    """Training images in a chain of repeats with a test image, from the rows of audit.csv."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for row in rows:
        if row["reason"] in REPEATS:
            # Its detail is "same pixels as ID" or "N of 120 bits from ID", then ", labelled …".
            parents[root(row["file"])] = root(row["detail"].split(",")[0].split()[-1])
    tested = {root(name) for name in list(parents) if not name.startswith(f"{TRAINING}-")}
    return {name for name in parents if name.startswith(f"{TRAINING}-") and root(name) in tested}


def near_tests(data: Path, near: int) -> set[str]:
    """Training images whose perceptual hash is within `near` bits of a test image's."""
    import numpy as np

    from emojax.data import fer2013
    from emojax.data.audit import BITS, perceptual_hash

    def signs(split: str) -> tuple[Sequence[str], "np.ndarray"]:
        images = fer2013.load(data, split)
        return images.ids, np.where(
            perceptual_hash(np.asarray(images.images)[..., 0]), np.float32(1), np.float32(-1)
        )

    ids, trained = signs(TRAINING)
    found = set()
    for split in fer2013.SPLITS:
        if split != TRAINING:
            apart = (BITS - (trained @ signs(split)[1].T).max(axis=1)) / 2
            found |= {ids[row] for row in np.flatnonzero(apart <= near)}
    return found


def main(
    data: tyro.conf.Positional[Path],
    audit: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
) -> None:
    """Writes the list.

    Args:
      data: the prepared FER2013.
      audit: audit.csv of an audit of it.
      out: csv to write.
    """
    rows = list(csv.DictReader(audit.read_text("utf-8").splitlines()))
    reasons = {name: "leak" for name in linked_to_tests(rows) | near_tests(data, near=12)}
    reasons |= {row["file"]: row["reason"] for row in reversed(rows) if row["split"] == TRAINING}
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "reason"])
        writer.writerows(sorted(reasons.items()))
    print(f"{len(reasons)} training images in {out}")


if __name__ == "__main__":
    tyro.cli(main)
