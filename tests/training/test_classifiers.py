"""Classification: learning, streaming, precision, augmentation, and a full step against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import generated_images
from flax import nnx
from scipy import stats
from small_training import ROUNDING, assert_same, distance, fit, leaves, recipe, task_of

from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.models.vgg import VggConfig, VggNet
from emojax.training import classifiers
from emojax.training import fit as loop
from emojax.training.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    """Noisy everywhere: even areas would tie in max-pooling, and rounding pick the winner."""
    return generated_images(64, 3, "blobs")


@pytest.mark.long
def test_learns_what_can_be_learnt(tiny_vgg, blobs):
    """Better in loss, and beyond luck in accuracy, than what does not look at the images."""
    images = ImageSet.from_arrays(blobs.images[:96], blobs.labels[:96], blobs.classes)
    last = fit(tiny_vgg, images, recipe(epochs=30, learning_rate=0.02))[0].history[-1]
    share = np.bincount(images.labels, minlength=7) / len(images)
    # Without the images, the best prediction is the mean of the smoothed targets; its loss is their
    # entropy, and its accuracy the share of the commonest class.
    target = 0.9 * share + 0.1 / 7
    assert last["loss"] < -(target * np.log(target)).sum()
    correct = round(last["accuracy"] * len(images))
    assert stats.binomtest(correct, len(images), share.max(), "greater").pvalue < 1e-9


@pytest.mark.long
def test_a_stream_gives_what_resident_images_give(tiny_vgg, images):
    """The same batches by two programs, which may round differently."""
    (here,) = fit(tiny_vgg, images, task={"resident": True})
    (streamed,) = fit(tiny_vgg, images, task={"resident": False})
    start = task_of(tiny_vgg, images).start(0)
    assert distance(here.last, streamed.last, start) < ROUNDING


@pytest.mark.long
def test_bfloat16_keeps_float32_parameters_and_comes_near(tiny_vgg, images):
    (full,) = fit(tiny_vgg, images, task={"precision": "float32"})
    with jax.numpy_dtype_promotion("standard"):  # flax's BatchNorm mixes its float32 statistics in
        (half,) = fit(tiny_vgg, images, task={"precision": "bfloat16"})
    assert {leaf.dtype for leaf in leaves((half.params, half.rest))} <= {
        np.dtype(np.float32),
        np.dtype(np.uint32),
    }
    assert half.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=0.03)
    assert half.history[-1]["loss"] != full.history[-1]["loss"]


@pytest.mark.long
def test_augmented_training_is_seeded(tiny_vgg, images):
    one, again, other = (
        fit(tiny_vgg, images, recipe(epochs=1, seed=seed), task={"augment": "one_crop"})[0]
        for seed in (0, 0, 1)
    )
    assert_same(one.last, again.last)
    assert one.history[0]["loss"] != other.history[0]["loss"]


NARROW = VggConfig(widths=(4, 4, 6, 6, 8, 8, 10, 10), hidden=(24, 20), dropout=0.0)
FULL = VggConfig(dropout=0.0)


@pytest.mark.long
@pytest.mark.parametrize("config", [NARROW, pytest.param(FULL, marks=pytest.mark.exhaustive)])
def test_a_step_of_a_vggnet_equals_pytorchs(config):
    """Loss, gradients and the SGD step, the full network's of 29.89 M parameters; no dropout.

    Gradients in float64: in float32, rounding turns a ReLU here and there. The step, in float32, is
    compared with what PyTorch's optimizer makes of the same gradients.
    """
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    from emojax.models import vgg
    from emojax.ops.augment import mirror

    model = nnx.jit(lambda: VggNet(config, rngs=nnx.Rngs(0)))()
    # Of the network's size, so they are not resized.
    pictures = np.random.default_rng(0).integers(0, 256, (16, 40, 40, 1), np.uint8)
    labels = np.random.default_rng(1).integers(0, 7, 16).astype(np.int32)
    given = ImageSet.from_arrays(pictures, labels, [str(i) for i in range(7)])
    task = classifiers.classification_task(model, given, batch=16)
    oracle = reference.torch_vgg(torch, config)
    start = {name: torch.tensor(array) for name, array in vgg.to_torch_state_dict(model).items()}
    oracle.load_state_dict(start, strict=True)
    oracle.train().double()
    # As the step folds its number in: the mirroring is then known.
    key = jax.random.fold_in(jax.random.key(3), 0)
    (rows,) = task.batches(0, 3, 0)
    params, rest = task.start(3)
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    with jax.enable_x64(True):
        mirrored = np.asarray(mirror(jax.random.split(key)[0], jnp.asarray(pictures[rows])))
        exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, rest))
        (ours, _), gradients = jax.jit(gradient)(*exact, task.data, rows, key)
        as_torch = vgg.to_torch_state_dict(classifiers.trained(model, gradients, rest))
    x = torch.tensor(np.float32(mirrored).transpose(0, 3, 1, 2) / 255).double()
    loss = torch.nn.functional.cross_entropy(
        oracle(x), torch.tensor(labels[rows], dtype=torch.long)
    )
    loss.backward()
    assert float(ours) == pytest.approx(loss.item(), rel=1e-6)
    theirs = {name: parameter.grad.numpy() for name, parameter in oracle.named_parameters()}

    def scale(name):
        """Of a gradient; of a convolution's bias, which BatchNorm takes off, that of its kernel."""
        return np.abs(
            theirs[name.replace("bias", "weight") if name.startswith("conv") else name]
        ).max()

    for name, want in theirs.items():
        assert np.abs(as_torch[name] - want).max() <= 1e-6 * scale(name), name
    if config == FULL:
        assert round(sum(want.size for want in theirs.values()) / 1e6, 2) == 29.89

    oracle.float().load_state_dict(start, strict=True)
    _, gradients = jax.jit(gradient)(params, rest, task.data, rows, key)
    for name, array in vgg.to_torch_state_dict(classifiers.trained(model, gradients, rest)).items():
        if name in theirs:
            oracle.get_parameter(name).grad = torch.tensor(array)
    torch.optim.SGD(
        oracle.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    ).step()
    one = Recipe(epochs=1, optimizer="sgd", schedule="constant", learning_rate=0.01, seed=3)
    (result,) = loop.fit(task, one, mesh=make_mesh(1))
    after = vgg.to_torch_state_dict(classifiers.trained(model, *result.last))
    for name, parameter in oracle.named_parameters():
        # The step is 0.01 · 1.9 of gradient and decay; a parameter itself is known to 2^-24 of it.
        known = 2**-23 * np.abs(start[name].numpy()).max()
        assert (
            np.abs(after[name] - parameter.detach().numpy()).max()
            <= 0.019 * 1e-4 * scale(name) + known
        ), name


def test_a_new_head_leaves_the_convolutions_and_the_network_itself(tiny_vgg):
    before = leaves(tiny_vgg)
    fresh = classifiers.with_new_head(tiny_vgg, 7)
    assert_same(leaves(tiny_vgg), before)
    own = dict(nnx.to_flat_state(nnx.state(tiny_vgg)))
    for path, leaf in nnx.to_flat_state(nnx.state(fresh)):
        same = np.array_equal(np.asarray(leaf[...]), np.asarray(own[path][...]))
        assert same == (not str(path[0]).startswith("lin")) or path[-1] == "bias"
