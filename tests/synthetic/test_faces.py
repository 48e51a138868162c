"""Rendered faces: reproducible pictures, rules that agree with them, captions that are true."""

import numpy as np
import pytest

from emojax.data.concepts import load_concepts
from emojax.data.fer2013 import CLASSES
from emojax.errors import InputError
from emojax.synthetic import faces


@pytest.fixture(scope="module")
def people():
    return faces.random_faces(700, 5)


@pytest.fixture(scope="module")
def few():
    return faces.random_faces(150, 5)


@pytest.fixture(scope="module")
def pictures(few):
    return few.render()


@pytest.mark.slow
def test_same_seed_same_bytes(few, pictures):
    again = faces.random_faces(150, 5)
    np.testing.assert_array_equal(again.render(), pictures)
    np.testing.assert_array_equal(few.render(batch=40), pictures)
    assert (faces.random_faces(150, 6).render() != pictures).any(axis=(1, 2, 3)).all()
    assert pictures.shape == (150, 48, 48, 1)
    assert pictures.dtype == np.uint8


def test_every_concept_of_the_paper_has_a_rule_and_is_seen(people):
    assert load_concepts("faces30").concepts == faces.ATTRIBUTES
    assert faces.ATTRIBUTES[:25] == load_concepts("paper25").concepts
    assert faces.ATTRIBUTES[25:] == faces.DISTRACTORS
    for value in (faces.PRESENT, faces.ABSENT):
        share = (people.attributes == value).mean(axis=0)
        assert (share > 0.03).all(), faces.ATTRIBUTES[share.argmin()]


def test_what_a_hand_hides_is_unclear(people):
    hidden = people.numbers["hand"] > 0
    assert hidden.any()
    assert (people.attributes[hidden, :25] == faces.UNCLEAR).all()
    assert (people.attributes[hidden, faces.ATTRIBUTES.index("Glasses")] != faces.UNCLEAR).all()


def test_rules_exclude_each_other(people):
    present = {
        name: people.attributes[:, at] == faces.PRESENT for at, name in enumerate(faces.ATTRIBUTES)
    }
    for one, other in (
        ("Raised Brows", "Lowered Brows"),
        ("Wide Open Eyes", "Closed Eyes"),
        ("Narrowed Eyes", "Relaxed Eyes"),
        ("Smile", "Frown"),
        ("Wide Open Mouth", "Compressed Lips"),
        ("Relaxed Facial Muscles", "Tightened Facial Muscles"),
    ):
        assert not (present[one] & present[other]).any(), (one, other)
    assert not (present["Frown"] & ~present["Downturned Mouth"]).any()


def test_emotions_follow_the_papers_map():
    """A concept is more common in the emotions it speaks for than elsewhere."""
    people = faces.random_faces(7000, 9)
    paper = load_concepts("paper25")
    mask = paper.class_mask(CLASSES)
    for at, concept in enumerate(paper.concepts):
        own = mask[at][people.emotions]
        shown = people.attributes[:, at] == faces.PRESENT
        assert shown[own].mean() > 1.2 * shown[~own].mean(), concept


@pytest.mark.long
def test_a_number_changes_its_own_part_of_the_picture(people):
    """Pixels change where that part of the face is, and nowhere far from it."""
    plain = {name: np.zeros(1, np.float32) for name in people.numbers}
    neutral = {
        "face_width": 0.7,
        "face_height": 1,
        "eye_gap": 0.3,
        "eye_size": 1,
        "nose_long": 1,
        "mouth_width": 0.3,
        "lips": 1,
        "lip_dark": 0.3,
        "brow_thick": 0.045,
        "brow_tone": 0.3,
        "wrinkles": 0.6,
        "skin": 0.6,
        "scale": 0.9,
        "exposure": 1,
        "eye_open": 0.8,
        "background": 0.5,
        "hand_side": 1,
    }

    def draw(**changed):
        numbers = {k: np.full(1, v, np.float32) for k, v in (neutral | changed).items()}
        face = faces.Faces(plain | numbers, np.zeros(1, np.int32), np.zeros(1, np.uint32))
        return face.render(1)[0, :, :, 0].astype(int)

    base = draw()
    for name, value, rows in (
        ("brow_raise", 0.9, (0, 22)),
        ("furrow", 0.9, (8, 24)),
        ("eye_open", 0.02, (14, 30)),
        ("tears", 1.0, (18, 40)),
        ("nostrils", 0.9, (20, 36)),
        ("mouth_curve", 0.9, (22, 46)),
        ("press", 0.9, (30, 42)),
        ("chin", 0.9, (28, 47)),
    ):
        changed = np.abs(draw(**{name: value}) - base).max(axis=1) > 12
        where = np.flatnonzero(changed)
        assert len(where), name
        assert rows[0] <= where.min() <= where.max() < rows[1], (name, where.min(), where.max())


def test_captions_are_true(people):
    captions = faces.random_captions(people, 3)
    assert captions.texts == faces.random_captions(people, 3).texts
    assert captions.texts != faces.random_captions(people, 4).texts
    rows = np.arange(len(people))
    true = captions.true_of(people, rows)
    assert true.diagonal().all()
    assert 0.01 < true.mean() < 0.4
    for row in range(50):
        said = [name for at, name in enumerate(faces.ATTRIBUTES) if captions.said[row, at]]
        assert all(name.lower() in captions.texts[row] for name in said)
        named = [
            emotion
            for emotion in CLASSES
            if emotion in captions.texts[row].replace(",", " ").split()
        ]
        assert named == ([] if captions.emotions[row] < 0 else [CLASSES[people.emotions[row]]])
        for other in range(0, 700, 50):
            plain = all(
                people.attributes[other, faces.ATTRIBUTES.index(name)] == faces.PRESENT
                for name in said
            )
            plain &= captions.emotions[row] in (-1, people.emotions[other])
            assert true[row, other] == plain


@pytest.mark.long
def test_linear_classifier_does_not_solve_it():
    train, test = faces.random_faces(2500, 1), faces.random_faces(1000, 2)
    rows, held = (
        np.c_[f.render().reshape(len(f), -1) / 255.0, np.ones(len(f))] for f in (train, test)
    )
    weights = np.linalg.solve(
        rows.T @ rows + 10 * np.eye(rows.shape[1]), rows.T @ np.eye(7)[train.emotions]
    )
    accuracy = ((held @ weights).argmax(axis=1) == test.emotions).mean()
    assert 0.2 < accuracy < 0.6


def test_splits():
    assert len(faces.split("public_test", 10)) == 10
    assert not np.array_equal(
        faces.split("training", 10).seeds, faces.split("public_test", 10).seeds
    )
    with pytest.raises(InputError, match="no split 'public'; did you mean 'public_test'"):
        faces.split("public")


@pytest.mark.slow
def test_sheet(pictures):
    page = faces.sheet(pictures[:5], 3)
    assert page.shape == (100, 150)
    np.testing.assert_array_equal(page[50:98, 50:98], pictures[4, :, :, 0])
