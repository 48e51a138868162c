"""Concept files and sets."""

import pytest

from emojax.data import fer2013
from emojax.data.concepts import ConceptSet, load_concepts, parse_concepts, to_csv
from emojax.errors import InputError


def test_one_word_in_two_forms_is_one_concept():
    found = parse_concepts(
        "Mu\u0308de\n\u0646\u0645\u06cc\u200c\u062e\u0648\n\U0001f469\u200d\U0001f393\n", "file"
    )
    assert found.concepts[0] == "M\u00fcde"
    assert found.indices(["Mu\u0308de", "M\u00fcde"]) == [0, 0]
    assert found.concepts[1:] == (
        "\u0646\u0645\u06cc\u200c\u062e\u0648",
        "\U0001f469\u200d\U0001f393",
    )


def test_concepts_that_look_alike_are_refused():
    with pytest.raises(InputError, match=r"'Sm\\u0456le' look alike, as concepts 1 and 2; remove"):
        ConceptSet(("Smile", "Sm\u0456le"))
    with pytest.raises(InputError, match="'Smile' stands as concepts 1 and 3; remove one"):
        ConceptSet(("Smile", "Frown", "Smile"))
    assert (
        len(
            ConceptSet(
                (
                    "Smile",
                    "smile",
                    "Smiles",
                    "\u0441\u043c\u0435\u0445",
                    "\u03b3\u03ad\u03bb\u03b9\u03bf",
                )
            )
        )
        == 5
    )


def test_built_in_concepts():
    paper = load_concepts("paper25")
    assert len(paper) == 25
    mask = paper.class_mask(fer2013.CLASSES)
    assert mask.sum() == 36
    assert mask[paper.by_name["Smile"]].tolist() == [name == "happy" for name in fer2013.CLASSES]
    assert load_concepts("classes7").concepts == fer2013.CLASSES


def test_concept_files():
    plain = parse_concepts("Smile\n\n  Frown \n", "file")
    assert plain.concepts == ("Smile", "Frown")
    assert plain.class_mask(("happy",)) is None
    mapped = parse_concepts('concept,emotions\n\n"Smile, broad",happy; Surprise\n', "file")
    assert mapped.concepts == ("Smile, broad",)
    assert mapped.class_mask(("happy", "sad", "surprise")).tolist() == [[True, False, True]]
    silent = parse_concepts("concept,emotions\nGlasses,none\nSmile,happy\n", "file")
    assert silent.class_mask(("happy", "sad")).tolist() == [[False, False], [True, False]]
    assert parse_concepts(to_csv(silent), "file") == silent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no concept in it"),
        (b"\n \n", "no concept in it"),
        (b"Smile\nFrown\n\nSmile\n", "'Smile' stands on lines 1 and 4"),
        (b"Smile\n\xff\n", "byte 6 is not UTF-8"),
        (b"concept,emotions\nSmile\n", "line 2: 1 columns"),
        (b"concept,emotions\nSmile,\n", "line 2: a concept and at least one emotion"),
        (b"concept,emotions\nSmile,hapy\n", "no class of the data; did you mean 'happy'"),
    ],
)
def test_concept_file_refusals(tmp_path, content, message):
    path = tmp_path / "concepts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_concepts(path).class_mask(fer2013.CLASSES)


def test_concept_set_refusals():
    with pytest.raises(InputError, match="no concept file 'paper26'; built in: paper25"):
        load_concepts("paper26")
    with pytest.raises(InputError, match="concept 2 is blank"):
        ConceptSet(("a", " "))
