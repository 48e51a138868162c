"""`collect` against `probe`: the same record from activations that torch computed."""

import numpy as np
import pytest
from interruptions import Stopped

import emojax
from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.probing import record

LAYERS = {"block0": 24, "block1.hidden": 40, "pooled": 24}


@pytest.fixture(scope="module")
def photos():
    """37 colour images with two classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 20, 20, 3), dtype=np.uint8)
    images[:, :10] //= np.arange(1, 38)[:, None, None, None].astype(np.uint8)
    return ImageSet.from_arrays(images, np.arange(37) % 2, ("calm", "joy"), name="photos")


@pytest.fixture(scope="module")
def activations():
    """Of 37 images: a convolution's [37, 6, 5, 4], channels last, and a dense layer's."""
    rng = np.random.default_rng(1)
    shapes = {"conv": (37, 6, 5, 4), "dense": (37, 3)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def collected(photos, clip, activations, *, add=5, stop_at=37, **options):
    images = np.asarray(photos.images[0:37])
    sizes = {name: array.shape[-1] for name, array in activations.items()}
    options = {"batch": 8, "tile": 8, "mesh": make_mesh(1)} | options
    with emojax.collect(sizes, clip, photos, **options) as collection:
        for start in range(collection.done, 37, add):
            if start >= stop_at:
                raise Stopped
            rows = slice(start, start + add)
            collection.add(images[rows], {name: a[rows] for name, a in activations.items()})
    return collection.record


@pytest.mark.long
def test_a_torch_network_gives_the_record_of_the_converted_one(photos, tiny_clip, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    patches = {"intermediate_size": 40, "image_size": 16, "patch_size": 4}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **patches))
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    options = {"tile": 8, "keep_activations": True}
    network = emojax.load_network(tmp_path)
    want = emojax.probe(network, photos, tiny_clip, layers=list(LAYERS), **options)

    caught = {}
    modules = {
        "block0": model.vit.layers[0],
        "block1.hidden": model.vit.layers[1].mlp.activation_fn,
        "pooled": model.vit.layernorm,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: caught.update({name: out}))
    images = np.asarray(photos.images[0:37])
    with emojax.collect(LAYERS, tiny_clip, photos, **options) as collection, torch.no_grad():
        for start in range(0, 37, 10):
            batch = images[start : start + 10]
            model(**processor(list(batch), return_tensors="pt", input_data_format="channels_last"))
            collection.add(batch, caught)
    got = collection.record

    assert got.layers == want.layers == LAYERS
    assert (got.classes, list(got.ids)) == (want.classes, list(want.ids))
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.activations, want.activations, atol=1e-4)
    np.testing.assert_array_equal(got.embeddings, want.embeddings)
    concepts = ["Smile", "Frown", "Raised Brows", "Jaw"]
    for similarity in ("soft_wpmi", "cos_similarity"):
        mine, theirs = (
            emojax.dissect(one, concepts, similarity=similarity, top_k=10, null_sets=0)
            if similarity == "soft_wpmi"
            else emojax.dissect(one, concepts, similarity=similarity)
            for one in (got, want)
        )
        np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(mine.labels, theirs.labels)


@pytest.mark.long
def test_layout_width_and_batches_do_not_matter(photos, tiny_clip, activations):
    want = collected(photos, tiny_clip, activations, keep_activations=True)
    np.testing.assert_allclose(
        want.activations[:, :4], activations["conv"].mean((1, 2)), rtol=1e-5, atol=1e-6
    )
    torch_layout = activations | {
        "conv": np.asfortranarray(activations["conv"].transpose(0, 3, 1, 2))
    }
    sizes = {"conv": 4, "dense": 3}
    images = np.asarray(photos.images[0:37])
    for add, batch in ((37, 8), (3, 16), (11, 64)):
        with emojax.collect(
            sizes, tiny_clip, photos, batch=batch, tile=8, mesh=make_mesh(1), keep_activations=True
        ) as collection:
            for start in range(0, 37, add):
                rows = slice(start, start + add)
                collection.add(images[rows], {n: a[rows] for n, a in torch_layout.items()})
        got = collection.record
        np.testing.assert_allclose(got.activations, want.activations, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(got.embeddings, want.embeddings)
        np.testing.assert_array_equal(got.top.indices, want.top.indices)
    half = {name: array.astype(np.float16) for name, array in activations.items()}
    got = collected(photos, tiny_clip, half)
    np.testing.assert_allclose(got.moments.total, want.moments.total, atol=37 * 2**-9)
    largest = collected(photos, tiny_clip, activations, pool="max", keep_activations=True)
    np.testing.assert_array_equal(largest.activations[:, :4], activations["conv"].max((1, 2)))
    assert (largest.pool, largest.tokens) == ("max", None)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["cls", "mean", "max"])
def test_tokens_are_pooled_by_name(photos, tiny_clip, tokens):
    """The same record from a network's tap and from activations that are added, which says how."""
    drawn = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    plain = np.asarray(photos.images[0:37])[..., :1] / np.float32(255)
    states = plain.reshape(37, -1, 50) @ drawn
    want = {"cls": states[:, 0], "mean": states.mean(axis=1), "max": states.max(axis=1)}[tokens]
    options = {"tokens": tokens, "keep_activations": True, "mesh": make_mesh(1)}

    def network(x):
        return x[:, 0, 0], {"block": x[..., :1].reshape(len(x), -1, 50) @ drawn}

    probed = emojax.probe(network, photos, tiny_clip, batch=64, **options)
    with emojax.collect({"block": 5}, tiny_clip, photos, **options) as collection:
        collection.add(photos.images[0:37], {"block": states})
    for made in (probed, collection.record):
        np.testing.assert_allclose(made.activations, want, rtol=1e-4, atol=1e-4)
        assert (made.tokens, made.pool) == (tokens, None)


@pytest.mark.slow
def test_a_killed_collection_resumes_to_the_same_bytes(photos, tiny_clip, activations, tmp_path):
    options = {"key": "random v1", "save_every": 0.0, "keep_activations": True}
    whole = collected(photos, tiny_clip, activations, cache=tmp_path / "whole", **options)

    broken = tmp_path / "broken"
    with pytest.raises(Stopped):
        collected(photos, tiny_clip, activations, cache=broken, stop_at=25, **options)
    resumed = collected(photos, tiny_clip, activations, cache=broken, **options)
    assert 0 < resumed.done_before < 37
    first, second = (
        {path.name: path.read_bytes() for path in (root / whole.key).iterdir()}
        for root in (tmp_path / "whole", broken)
    )
    assert first == second
    assert len(first) >= 5
    # A finished one is read, whatever would be added.
    with emojax.collect(
        {"conv": 4, "dense": 3}, tiny_clip, photos, tile=8, cache=broken, **options
    ) as collection:
        assert collection.done == 37
    np.testing.assert_array_equal(collection.record.top.values, whole.top.values)
    assert record.load(broken / whole.key).key == whole.key


@pytest.mark.slow
def test_images_that_are_in_are_passed_over(photos, tiny_clip, activations):
    want = collected(photos, tiny_clip, activations)
    images = np.asarray(photos.images[0:37])
    with emojax.collect(
        {"conv": 4, "dense": 3}, tiny_clip, photos, batch=8, tile=8, mesh=make_mesh(1)
    ) as collection:
        for start, stop in ((0, 10), (5, 20), (0, 4), (20, 37)):
            rows = slice(start, stop)
            collection.add(images[rows], {n: a[rows] for n, a in activations.items()}, start=start)
    np.testing.assert_array_equal(collection.record.top.values, want.top.values)


@pytest.mark.parametrize(
    ("images", "given", "start", "message"),
    [
        ((4, 20, 20, 3), {"a": (4, 3)}, 2, "images 0…1 were left out"),
        ((9, 20, 20, 3), {"a": (9, 3)}, None, "more than the 8 announced"),
        ((4, 20, 20, 3), {"b": (4, 3)}, None, "activations are of b, the layers are a"),
        ((4, 20, 20, 3), {"a": (3, 3)}, None, "activations of 4 images have shape"),
        ((4, 20, 20, 3), {"a": (4, 5)}, None, "no axis of 3 units"),
        ((4, 20, 20, 3), {"a": (4, 3, 5, 3)}, None, "two axes of 3"),
        ((4, 3, 20, 20), {"a": (4, 3)}, None, "images are uint8"),
    ],
)
def test_refusals(images, given, start, message, tiny_clip):
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in given.items()}
    with (
        pytest.raises(InputError, match=message),
        emojax.collect({"a": 3}, tiny_clip, 8) as collection,
    ):
        collection.add(np.zeros(images, np.uint8), arrays, start=start)


def test_incomplete_collections_have_no_record(tiny_clip):
    with (
        pytest.raises(InputError, match="0 of 8 images were added"),
        emojax.collect({"a": 3}, tiny_clip, 8) as collection,
        pytest.raises(InputError, match="when the collection's context ends"),
    ):
        _ = collection.record
    with pytest.raises(InputError, match="name no units"):
        emojax.collect({}, tiny_clip, 8)
