"""Scores from a record: against float64, in tiles, layer by layer; and what is refused."""

import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from emojax.data.concepts import ConceptSet
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.probing import probe
from emojax.report import units
from emojax.report.write import write_dissection

CONCEPTS = ConceptSet(
    ("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"),
    (("happy",), ("sad", "angry"), ("surprise",), ("sad",), ("fear",)),
)


FEW = {"batch": 64, "tile": 8, "mesh": make_mesh(1)}  # one device: a smaller program to compile


@pytest.mark.long
def test_layer_by_layer_equals_all_at_once(found, tiny_vgg, blobs, tiny_clip):
    whole = dissect.dissect(found, CONCEPTS)
    for number, layer in enumerate(("conv1a", "lin2")):
        alone = probe.probe(tiny_vgg, blobs, tiny_clip, layers=[layer], **FEW)
        mine = found.segment_ids == list(found.layers).index(layer)
        np.testing.assert_array_equal(alone.merged.indices, found.merged.indices[mine])
        np.testing.assert_allclose(
            dissect.dissect(alone, CONCEPTS).scores,
            whole.scores[mine],
            atol=1e-5,
            err_msg=str(number),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["consensus", "correlation", "soft_wpmi", "wpmi", "cos_similarity", "cos_similarity_cubed"],
)
def test_late_scores_equal_float64(found, tiny_clip, name):
    text = tiny_clip.embed_texts(CONCEPTS.concepts)
    clip = np.float64(found.embeddings) @ np.float64(text).T
    extra = {"segments": found.segment_ids} if "wpmi" in name else {}
    want = getattr(reference, name)(clip, found.activations, **extra)
    got = dissect.dissect(found, CONCEPTS, similarity=name)
    assert np.abs(got.scores - want).max() <= 5e-6 * np.abs(want).max()
    np.testing.assert_array_equal(got.labels, want.argmax(1))


@pytest.mark.slow
def test_late_rank_reorder_equals_float64(found):
    rng = np.random.default_rng(0)
    text = np.abs(rng.standard_normal((5, 24))).astype(np.float32)
    positive = dataclasses.replace(found, embeddings=np.abs(found.embeddings))
    orders = np.stack([[rng.permutation(15) for _ in range(5)] for _ in found.segment_ids])
    got = dissect.dissect(
        positive,
        CONCEPTS,
        similarity="rank_reorder",
        text_embeddings=text,
        permutations=jnp.asarray(orders),
    )
    want = reference.rank_reorder(
        np.float64(positive.embeddings) @ np.float64(text).T, found.activations, orders
    )
    np.testing.assert_allclose(got.scores, want, rtol=2e-4)


@pytest.mark.slow
def test_undefined_pairs_are_marked_and_win_nothing(found, tmp_path):
    """A concept whose mean cosine is negative has no rank_reorder score; the others keep theirs."""
    rng = np.random.default_rng(0)
    text = np.abs(rng.standard_normal((3, 24))).astype(np.float32)
    positive = dataclasses.replace(found, embeddings=np.abs(found.embeddings))
    signs = np.float32([[-1], [1], [1]])

    def label(concepts, rows):
        texts = (signs * text)[rows]
        return dissect.dissect(positive, concepts, similarity="rank_reorder", text_embeddings=texts)

    some = label(CONCEPTS.concepts[:3], slice(0, 3))
    defined = label(CONCEPTS.concepts[1:3], slice(1, 3))
    assert np.isnan(some.scores[:, 0]).all()
    assert some.undefined == len(some.scores)
    np.testing.assert_allclose(some.scores[:, 1:], defined.scores, rtol=2e-4)
    np.testing.assert_array_equal(some.labels, 1 + some.scores[:, 1:].argmax(axis=1))
    np.testing.assert_array_equal(some.best, some.scores[:, 1:].max(axis=1))
    np.testing.assert_array_equal(some.runner_up, 3 - some.labels)

    alone = label(CONCEPTS.concepts[:2], slice(0, 2))  # no runner-up is defined
    write_dissection(tmp_path, alone, 0.0)
    with open(tmp_path / "dissection.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["concept"], row["runner_up"], row["margin"]) for row in rows} == {
        (CONCEPTS.concepts[1], "", "")
    }
    details = units.load(tmp_path)
    np.testing.assert_array_equal(np.isnan(details.best_scores), [[False, True]] * len(rows))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["undefined_pairs"] == len(rows)


@pytest.mark.slow
def test_many_concepts_cross_tiles(found):
    rng = np.random.default_rng(0)
    text = rng.standard_normal((203, 24)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    names = [f"c{i}" for i in range(203)]
    got = dissect.dissect(found, names, text_embeddings=text)
    want = reference.consensus(np.float64(found.embeddings) @ np.float64(text).T, found.activations)
    assert np.abs(got.scores - want).max() <= 5e-6 * np.abs(want).max()


@pytest.mark.slow
def test_dissect_refusals(tiny_vgg, blobs, tiny_clip):
    few = probe.probe(tiny_vgg, blobs.first(60), tiny_clip, layers=["lin2"], **FEW)
    with pytest.raises(
        InputError,
        match="the top 100 images of each unit are needed, the record holds 60; use --dissect",
    ):
        dissect.dissect(few, CONCEPTS)
    short = probe.probe(tiny_vgg, blobs.first(60), tiny_clip, layers=["lin2"], top_k=10, **FEW)
    with pytest.raises(InputError, match=r"use --probe.top-k 28"):
        dissect.dissect(short, CONCEPTS, similarity="wpmi")
    with pytest.raises(InputError, match=r"probe with --probe.keep-activations"):
        dissect.dissect(few, CONCEPTS, similarity="cos_similarity_cubed")
    with pytest.raises(InputError, match="undefined with every concept for 20 units"):
        dissect.dissect(
            few, CONCEPTS, similarity="rank_reorder", text_embeddings=-few.embeddings[:5]
        )


@pytest.mark.slow
def test_record_of_another_clip_is_refused(found, tiny_clip):
    other = dataclasses.replace(
        tiny_clip, preprocess=dataclasses.replace(tiny_clip.preprocess, mean=(0.5, 0.5, 0.5))
    )
    with pytest.raises(InputError, match="made with another CLIP"):
        dissect.dissect(found, CONCEPTS, clip=other)


def test_edited_concepts_are_embedded_anew(tiny_clip, tmp_path):
    first = dissect.embed_concepts(tiny_clip, CONCEPTS, tmp_path)
    np.testing.assert_array_equal(dissect.embed_concepts(tiny_clip, CONCEPTS, tmp_path), first)
    assert len(list((tmp_path / "texts").iterdir())) == 1
    edited = ConceptSet(("Grin", *CONCEPTS.concepts[1:]))
    np.testing.assert_array_equal(
        dissect.embed_concepts(tiny_clip, edited, tmp_path), tiny_clip.embed_texts(edited.concepts)
    )
    assert len(list((tmp_path / "texts").iterdir())) == 2
