"""Properties of what reads files: whatever bytes come, it reads them or refuses them.

`EMOJAX_FUZZ=5000` asks for more examples than the suite's.
"""

import io
import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import write_fer_csv
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from emojax.data import concepts, fer2013
from emojax.data.decode import read_image
from emojax.data.exclude import Excluded
from emojax.data.lookalikes import look
from emojax.data.weights import read_arrays
from emojax.errors import InputError, one_line
from emojax.probing import record as records
from emojax.settings import Settings, read_settings

pytestmark = pytest.mark.slow

fuzzed = settings(
    max_examples=int(os.environ.get("EMOJAX_FUZZ", "60")),
    deadline=None,
    derandomize="EMOJAX_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some replaced, cut out, put in twice or at the end cut off; or others
    altogether.
    """
    places = st.integers(0, len(valid))
    replaced = st.lists(st.tuples(places, st.binary(min_size=1, max_size=6)), max_size=4)

    def apply(edits: list[tuple[int, bytes]], cut: int | None, twice: bool) -> bytes:
        data = bytearray(valid)
        for at, new in edits:
            data[at : at + len(new)] = new
        data = data[:cut] if cut is not None else data
        return bytes(data * 2 if twice else data)

    return st.one_of(
        st.builds(apply, replaced, st.none() | places, st.booleans()), st.binary(max_size=200)
    )


def refused_or(read):
    """Runs a reader; anything but its result or a refusal of one line fails the test."""
    try:
        return read()
    except InputError as error:
        return None if one_line(error).isprintable() else pytest.fail(f"{error!r} is no line")


def image_bytes(form: str, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(
        data, form, **options
    )
    return data.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow's, of odd metadata in files that it can read
def test_image_files(tmp_path, form):
    path = tmp_path / "image"

    @fuzzed
    @given(damaged(image_bytes(form)))
    def check(data):
        path.write_bytes(data)
        found = refused_or(lambda: read_image(path))
        assert found is None or (found.mode in ("L", "RGB") and found.width * found.height > 0)

    check()


def test_safetensors_files(tmp_path):
    path = tmp_path / "a.safetensors"

    @fuzzed
    @given(damaged(save({"a": np.ones((2, 3), np.float32), "b": np.arange(4)})))
    def check(data):
        path.write_bytes(data)
        found = refused_or(lambda: read_arrays(path))
        assert found is None or all(isinstance(array, np.ndarray) for array in found.values())

    check()


def test_csv_files(tmp_path):
    rows = [(i, np.full(2304, i), "Training") for i in range(2)]
    valid, path = write_fer_csv(tmp_path / "fer2013.csv", rows).read_bytes(), tmp_path / "x.csv"

    @fuzzed
    @given(damaged(valid))
    def check(data):
        path.write_bytes(data)
        for face in refused_or(lambda: list(fer2013.read_csv(path))) or []:
            assert len(face.pixels) == 2304
            assert 0 <= face.label < 7
        told = []
        refused_or(lambda: list(fer2013.read_csv(path, lambda source, error: told.append(source))))
        assert all(source.startswith("row ") for source in told)

    check()


def test_concept_files(tmp_path):
    path = tmp_path / "c.txt"

    @fuzzed
    @given(
        damaged(b'concept,emotions\nSmile,happy\n"Frown, deep",sad;angry\n')
        | st.text(max_size=80).map(str.encode)
    )
    def check(data):
        path.write_bytes(data)
        found = refused_or(lambda: concepts.load_concepts(path))
        if found is not None:
            assert all(text == text.strip() != "" for text in found.concepts)
            refused_or(lambda: found.class_mask(("happy", "sad", "angry")))
        refused_or(lambda: concepts.parse_answer(data.decode("utf-8", "replace"), ("happy", "sad")))

    check()


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12
).map(lambda word: unicodedata.normalize("NFC", word))  # as files are read


@fuzzed
@given(
    st.dictionaries(
        words,
        st.lists(words.filter(lambda w: ";" not in w), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_concept_sets_survive_their_csv(mapped):
    looks = set(map(look, mapped))
    assume(len(looks) == len(mapped) and "" not in looks)  # others are refused
    found = concepts.ConceptSet(tuple(mapped), tuple(map(tuple, mapped.values())))
    again = concepts.parse_concepts(concepts.to_csv(found), "again")
    assert (again.concepts, again.emotions) == (found.concepts, found.emotions)


def test_lists_to_exclude(tmp_path):
    path = tmp_path / "x.csv"

    @fuzzed
    @given(damaged(b'file,reason\na,blank\n"b,c",leak\n'))
    def check(data):
        path.write_bytes(data)
        found = refused_or(lambda: Excluded.read(path))
        if found is not None:
            kept = refused_or(lambda: found.rows_left(["a", "b,c", "d"], [""], "set"))
            assert kept is None or 2 in kept

    check()


def test_settings_files(tmp_path):
    path = tmp_path / "s.yaml"
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from([*Settings.model_fields, "batch", "layers", "tau", "path"]) | st.text(
        max_size=5
    )
    values = st.recursive(
        scalars,
        lambda x: st.lists(x, max_size=3) | st.dictionaries(names, x, max_size=3),
        max_leaves=8,
    )

    @fuzzed
    @given(
        values.map(lambda v: json.dumps(v).encode())
        | damaged(b"probe: {batch: 32, layers: [lin1]}\nedit: {tau: [0.5]}\n")
    )
    def check(data):
        path.write_bytes(data)
        found = refused_or(lambda: read_settings(path))
        assert found is None or isinstance(found, Settings)

    check()


def test_records(tmp_path, sound):
    folder = tmp_path / "record"
    shutil.copytree(sound / "record", folder)

    @fuzzed
    @given(
        st.data(),
        st.sampled_from(["record.json", "ids.jsonl", "statistics.safetensors", "embeddings.npy"]),
    )
    def check(data, name):
        valid = (sound / "record" / name).read_bytes()
        (folder / name).write_bytes(data.draw(damaged(valid[:400])) + valid[400:])
        found = refused_or(lambda: records.load(folder))
        assert found is None or len(found.segment_ids) == found.top.values.shape[1]
        (folder / name).write_bytes(valid)

    check()
