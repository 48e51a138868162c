"""`emojax dissect`: the concepts, records and folders that it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import cut, edited, encoded, replaced, rewritten
from refusals import Inputs, table

from emojax import store


def dissect(inputs: Inputs, **changed: str) -> list[str]:
    args = {
        "--record": str(inputs.sound / "record"),
        "--clip.path": str(inputs.sound / "clip"),
        "--concepts.path": "paper25",
    }
    args |= {"--dissect.top-k": "20"} | {
        f"--{name.replace('__', '.')}": value for name, value in changed.items()
    }
    return ["dissect", *(part for pair in args.items() for part in pair)]


@pytest.mark.parametrize(
    ("content", "message"),
    table(
        ("only blanks", " \n\t\n", "no concept in it"),
        ("only a header", "concept,emotions\n", "no concept in it"),
        ("a byte order mark alone", b"\xef\xbb\xbf", "no concept in it"),
        ("Latin-1", "Lächeln\n".encode("latin-1"), "is not UTF-8"),
        ("UTF-16", "Smile\n".encode("utf-16"), "is not UTF-8"),
        ("an image", encoded("PNG"), "is not UTF-8"),
        ("zero bytes", b"Smile\0\n", "control character"),
        ("an escape sequence", b"\x1b[31mSmile\n", "control character"),
        ("one line of 10 MB", b"x" * 10_000_000, "10000000 characters long"),
        ("10 MB of blank lines", b"\n" * 10_000_000, "10000000 lines"),
        ("10 MB of the same line", b"Smile\n" * 1_700_000, "1700000 lines"),
        ("a text too long for the tokenizer", "x" * 60, "tokens long"),
        ("a repeated concept", "Smile\nSmile\n", "stands on lines 1 and 2"),
        ("repeated but for blanks", "Smile\n  Smile \n", "stands on lines 1 and 2"),
        (
            "an emotion that is no class",
            "concept,emotions\nSmile,curious\n",
            "no class of the data",
        ),
        ("three columns", "concept,emotions\nSmile,happy,sad\n", "3 columns"),
        ("a comma without quotes", "concept,emotions\nSmile, broad,happy\n", "3 columns"),
        (
            "an entry without a concept",
            "concept,emotions\n,happy\n",
            "a concept and at least one emotion",
        ),
        (
            "emotions that are only semicolons",
            "concept,emotions\nSmile,;;\n",
            "a concept and at least one emotion",
        ),
        ("an open quote", 'concept,emotions\n"Smile,happy\n', "check its quotes"),
    ),
)
def test_concept_files_are_refused(inputs, content, message):
    inputs.refused(dissect(inputs, concepts__path=inputs.put("c.txt", content)), message)


def test_a_folder_is_no_concept_file(inputs):
    inputs.refused(dissect(inputs, concepts__path=str(inputs.here)), "no concept file")


def resaved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def flipped(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 16
        (folder / name).write_bytes(data)

    return change


def with_sums(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        change(folder)
        (folder / "checksums.json").unlink(missing_ok=True)
        store.write_checksums(folder, "0")

    return changed


def statistics(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: rewritten(change)(folder / "statistics.safetensors")


RECORDS = table(
    ("empty", lambda f: [p.unlink() for p in f.iterdir()], "not a readable probe record"),
    ("half written", lambda f: (f / "record.json").unlink(), "not a readable probe record"),
    ("of another version", edited("record.json", format=99), "probe record of format 99"),
    (
        "of a version that is a word",
        edited("record.json", format="new"),
        "probe record of format new",
    ),
    ("a description that is no JSON", replaced("record.json", "{"), "not a readable probe record"),
    ("a description that is a list", replaced("record.json", "[]"), "not a readable probe record"),
    ("no layers", edited("record.json", layers=[]), "not a readable probe record"),
    (
        "a layer of other size",
        edited("record.json", layers=[["lin2", 19]]),
        "not a readable probe record",
    ),
    (
        "a layer of negative size",
        edited("record.json", layers=[["a", 30], ["b", -10]]),
        "not a readable probe record",
    ),
    (
        "a layer of a word",
        edited("record.json", layers=[["lin2", "many"]]),
        "not a readable probe record",
    ),
    ("without classes", edited("record.json", classes=[]), "not a readable probe record"),
    (
        "statistics missing",
        lambda f: (f / "statistics.safetensors").unlink(),
        "not a readable probe record",
    ),
    (
        "statistics cut short",
        lambda f: cut(200)(f / "statistics.safetensors"),
        "not a readable probe record",
    ),
    ("one statistic missing", statistics(lambda a: a.pop("cross")), "not a readable probe record"),
    (
        "top images outside the set",
        statistics(lambda a: a["top_indices"].__setitem__((0, 0, 0), 4000)),
        "not a readable probe record",
    ),
    (
        "labels outside the classes",
        statistics(lambda a: a["labels"].__setitem__(0, 7)),
        "not a readable probe record",
    ),
    (
        "labels of other images",
        statistics(lambda a: a.update(labels=a["labels"][:-1])),
        "not a readable probe record",
    ),
    (
        "sums of other units",
        statistics(lambda a: a.update(total=a["total"][:-1])),
        "not a readable probe record",
    ),
    (
        "embeddings missing",
        lambda f: (f / "embeddings.npy").unlink(),
        "not a readable probe record",
    ),
    (
        "embeddings cut short",
        lambda f: cut(300)(f / "embeddings.npy"),
        "not a readable probe record",
    ),
    (
        "embeddings pickled",
        lambda f: np.save(f / "embeddings.npy", np.array([{}]), allow_pickle=True),
        "not a readable probe record",
    ),
    (
        "embeddings of other images",
        resaved("embeddings.npy", lambda e: e[:-1]),
        "not a readable probe record",
    ),
    (
        "embeddings of other width",
        resaved("embeddings.npy", lambda e: e[:, :-1]),
        "not a readable probe record",
    ),
    (
        "embeddings that are numbers in a row",
        resaved("embeddings.npy", lambda e: e.ravel()),
        "not a readable probe record",
    ),
    ("names missing", lambda f: (f / "ids.jsonl").unlink(), "not a readable probe record"),
    ("names cut short", lambda f: cut(30)(f / "ids.jsonl"), "not a readable probe record"),
    ("names that are no JSON", replaced("ids.jsonl", "a\nb\n"), "not a readable probe record"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), RECORDS)
def test_records_are_refused(inputs, change, message):
    inputs.refused(dissect(inputs, record=inputs.copy("record", change)), message)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), RECORDS)
def test_records_are_refused_for_their_parts(inputs, change, message):
    """With checksums of what lies there now, the parts themselves must be refused."""
    inputs.refused(dissect(inputs, record=inputs.copy("record", with_sums(change))), message)


@pytest.mark.parametrize(
    ("change", "message"),
    table(
        (
            "without checksums",
            lambda f: (f / "checksums.json").unlink(),
            "checksums.json: FileNotFoundError",
        ),
        (
            "one byte of the embeddings",
            flipped("embeddings.npy"),
            "embeddings.npy is not as it was written",
        ),
        (
            "one byte of the statistics",
            flipped("statistics.safetensors"),
            "statistics.safetensors is not as it was",
        ),
        (
            "of another CLIP",
            with_sums(edited("record.json", clip_key="0")),
            "made with another CLIP",
        ),
    ),
)
def test_records_that_were_changed_are_refused(inputs, change, message):
    inputs.refused(dissect(inputs, record=inputs.copy("record", change)), message)


@pytest.mark.parametrize("name", ["x", "none"])
def test_what_is_no_record_is_refused(inputs, name):
    inputs.put("x", "x")
    inputs.refused(dissect(inputs, record=str(inputs.here / name)), "not a readable probe record")


def test_a_record_of_too_few_top_images_is_refused(inputs):
    inputs.refused(dissect(inputs, dissect__top_k="35"), "use --probe.top-k 35")


@pytest.mark.parametrize(
    ("flag", "path", "message"),
    table(
        ("out is a file", "--out", "x", "is a file"),
        ("out inside a file", "--out", "x/run", "cannot"),
        ("out is somebody's folder", "--out", "y", "not an emojax run"),
        ("out has too long a name", "--out", "x" * 300, "File name too long"),
        ("cache is a file", "--cache", "x", "Not a directory"),
    ),
)
def test_places_are_refused(inputs, flag, path, message):
    inputs.put("x", "x")
    inputs.put("y/thesis.tex", "x")
    inputs.refused([*dissect(inputs), flag, inputs.here / path], message)
