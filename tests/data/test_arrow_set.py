"""Encoded images in sets of `datasets.save_to_disk`, as it lays them out, and in parquet files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emojax.data import arrow_set
from emojax.data.sources import open_sources, read_batches
from emojax.errors import InputError

arrow = pytest.importorskip("pyarrow", reason="Arrow and parquet need pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 8), np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(pixels=PIXELS, *, plain=False, **more):
    """Images as `datasets` has them, bytes and a path, or as bytes alone."""
    data = [encoded(image) for image in pixels]
    if plain:
        return arrow.table({"photo": data} | more)
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [{"bytes": row, "path": "same.png"} for row in data]
    return arrow.table({"image": arrow.array(rows, kind), "label": range(len(data))} | more)


def save_split(folder: Path, *tables) -> Path:
    """A split as `save_to_disk` leaves it: Arrow streams, and a list of them in order."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05}-of-{len(tables):05}.arrow" for part in range(len(tables))]
    for name, part in zip(names, tables, strict=True):
        with arrow.ipc.new_stream(str(folder / name), part.schema) as stream:
            stream.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read_all(*paths):
    """Names, pixels and reasons of all that the paths name."""
    sources = open_sources([str(path) for path in paths], 8, 1)
    reads = [read for source in sources for read in read_batches(source, 3)]
    images = np.concatenate([read.images[..., 0] for read in reads])
    return (
        [name for read in reads for name in read.names],
        images,
        [reason for read in reads for reason in read.reasons],
    )


@pytest.mark.slow
def test_saved_set_with_splits(tmp_path):
    saved = tmp_path / "saved"
    save_split(saved / "train", table(PIXELS[:3]), table(PIXELS[3:5]))
    save_split(saved / "test", table(PIXELS[5:]))
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    names, images, reasons = read_all(saved)
    np.testing.assert_array_equal(images, PIXELS)
    places = [f"{saved}/train#{row}" for row in range(5)] + [f"{saved}/test#{r}" for r in (0, 1)]
    assert names == places
    assert reasons == [""] * 7
    np.testing.assert_array_equal(read_all(saved / "test")[1], PIXELS[5:])


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_parquet_files_and_folders(tmp_path, plain):
    more = {"thumbnail": [b""] * 7} if not plain else {}  # `image` wins
    file = tmp_path / "data" / "train-0.parquet"
    file.parent.mkdir()
    parquet.write_table(table(plain=plain, **more), file, row_group_size=2)
    loose = tmp_path / "loose.png"
    Image.fromarray(PIXELS[0]).save(loose)
    names, images, _ = read_all(loose, file.parent, loose)
    np.testing.assert_array_equal(images, [PIXELS[0], *PIXELS, PIXELS[0]])
    assert names == [str(loose), *(f"{file}#{row}" for row in range(7)), str(loose)]
    # Beside images, a table is no input: predict itself writes some.
    Image.fromarray(PIXELS[1]).save(file.parent / "face.png")
    assert read_all(file.parent)[0] == [str(file.parent / "face.png")]


def test_rows_without_an_image_have_a_reason(tmp_path):
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [None, {"bytes": None, "path": "x.png"}, {"bytes": b"no image", "path": None}]
    rows.append({"bytes": encoded(PIXELS[0]), "path": None})
    parquet.write_table(arrow.table({"image": arrow.array(rows, kind)}), tmp_path / "p.parquet")
    names, images, reasons = read_all(tmp_path / "p.parquet")
    np.testing.assert_array_equal(images[3], PIXELS[0])
    assert "holds no image" in reasons[0]
    assert "holds no image" in reasons[1]
    assert reasons[2].startswith("not a readable image")
    assert reasons[3] == ""
    assert len(names) == 4


def damaged_offsets(folder: Path) -> None:
    """An Arrow file whose first image ends beyond all memory of the file."""
    file = next(folder.glob("*.arrow"))
    data = file.read_bytes()
    first, second = (len(encoded(image)) for image in PIXELS[:2])
    offsets = np.array([0, first, first + second], np.int32).tobytes()
    harmed = np.array([0, 2**30, first + second], np.int32).tobytes()
    assert offsets in data
    file.write_bytes(data.replace(offsets, harmed))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damaged_offsets, "not readable"),
        (lambda saved: next(saved.glob("*.arrow")).write_bytes(b"ARROW"), "not readable"),
        (lambda saved: (saved / "state.json").write_text("[]"), "must list names"),
        (
            lambda saved: (saved / "state.json").write_text(
                '{"_data_files": [{"filename": "../x.arrow"}]}'
            ),
            "must list names of this folder",
        ),
        (
            lambda saved: (saved / "state.json").write_text(
                '{"_data_files": [{"filename": "gone.arrow"}]}'
            ),
            "cannot read",
        ),
    ],
)
def test_damaged_sets_are_refused(tmp_path, harm, message):
    saved = save_split(tmp_path / "saved", table())
    harm(saved)
    with pytest.raises(InputError, match=message):
        read_all(saved)


def test_tables_without_one_column_of_images_are_refused(tmp_path):
    file = tmp_path / "t.parquet"
    parquet.write_table(arrow.table({"file": ["a.png"], "happy": [0.5]}), file)
    with pytest.raises(InputError, match=r"no column of encoded images .* file, happy"):
        read_all(file)
    parquet.write_table(arrow.table({"left": [b"1"], "right": [b"2"]}), file)
    with pytest.raises(InputError, match="left, right may all be images"):
        read_all(file)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    parquet.write_table(table(), tmp_path / "p.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'emojax\[parquet\]'"):
        arrow_set.open_parquet(tmp_path / "p.parquet")
