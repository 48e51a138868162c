"""A run's texts that try to break out of its page, and what is read back from it."""

import csv
import json
import shutil
from pathlib import Path

HOSTILE = (
    "<script>alert(1)</script>",
    "\"quotes\" & 'more' $x$ </svg>",
    "a\u2028</script><img onerror=b()>",
)


PLAIN = ("Smile", "Frown", "Raised Brows", "Tears")


def copy_of(run: Path, tmp_path: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(run, tmp_path / name))


def columns(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page_data(text: str) -> dict:
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])
