"""The loop: seeds, devices, members, resuming to the bit, divergence."""

import pytest
from conftest import generated_images
from flax import nnx
from small_training import ROUNDING, assert_same, distance, fit, leaves, recipe, task_of

from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.training import classifiers, step
from emojax.training.recipe import members

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    """Noisy everywhere: even areas would tie in max-pooling, and rounding pick the winner."""
    return generated_images(64, 3, "blobs")


EXHAUSTIVE = pytest.mark.exhaustive


class Killed(Exception):
    pass


def killer(after):
    def progress(done, total, note):
        if done >= after:
            raise Killed

    return progress


def start_of(model, images):
    """Parameters and other variables that a training begins with."""
    return task_of(model, images).start(0)


def test_one_device_equals_eight(tiny_vgg, images):
    """BatchNorm takes its statistics over the global batch: sharding it changes rounding only."""
    start = start_of(tiny_vgg, images)
    (one,) = fit(tiny_vgg, images, devices=1)
    (eight,) = fit(tiny_vgg, images, devices=8)
    assert distance(one.last, eight.last, start) < ROUNDING


def test_only_options_that_this_xla_knows_are_passed_on():
    assert step._is_known(("xla_cpu_enable_fast_math", "False"))
    assert not step._is_known(("xla_cpu_of_another_version", "1"))
    assert not step._is_known(("xla_cpu_experimental_ynn_fusion_type", "OF_ANOTHER_VERSION"))
    assert step._compiler_options(make_mesh()) == {}  # the suite has eight devices


def test_the_margin_of_rounding_sees_a_single_wrong_label(tiny_vgg, images):
    labels = images.labels.copy()
    labels[5] = (labels[5] + 1) % 7
    other = ImageSet.from_arrays(images.images, labels, images.classes)
    (right,) = fit(tiny_vgg, images)
    (wrong,) = fit(tiny_vgg, other)
    apart = distance(right.last, wrong.last, start_of(tiny_vgg, images))
    assert apart > 10 * ROUNDING


@pytest.mark.long
def test_sharded_parameters_change_rounding_only(tiny_vgg, images):
    (one,) = fit(tiny_vgg, images)
    (eight,) = fit(tiny_vgg, images, devices=8, shard=True)
    assert distance(one.last, eight.last, start_of(tiny_vgg, images)) < ROUNDING


def test_seeds_and_that_the_given_network_is_left_alone(tiny_vgg, images):
    before = leaves(nnx.state(tiny_vgg))
    one, again, other = (fit(tiny_vgg, images, recipe(seed=seed))[0] for seed in (0, 0, 1))
    assert_same((one.params, one.rest), (again.params, again.rest))
    assert distance(one.last, other.last, start_of(tiny_vgg, images)) > ROUNDING
    assert_same(before, leaves(nnx.state(tiny_vgg)))
    assert tiny_vgg.drop.deterministic
    assert len(one.history) == 2
    assert classifiers.trained(tiny_vgg, one.params, one.rest).drop.deterministic


@pytest.mark.long
def test_trainings_of_one_architecture_are_compiled_once(tiny_vgg, images):
    """Another task object, another seed, rate and length: the same jitted step, traced once."""
    step._jitted_step.cache_clear()
    fit(tiny_vgg, images)
    fit(tiny_vgg, images.first(32), recipe(seed=5, epochs=1, learning_rate=1e-4))
    made = task_of(tiny_vgg, images)
    mesh = make_mesh(1)
    shardings = step.state_shardings(mesh, step.first_state(made, recipe()), shard=False)
    jitted = step.make_step(made.loss, recipe(), mesh, shardings)
    assert step._jitted_step.cache_info().misses == 1
    # Two traces, as the second training keeps fewer images on the device.
    assert jitted._cache_size() == 2
    fit(tiny_vgg, images, recipe(seed=6))
    assert jitted._cache_size() == 2


@pytest.mark.long
def test_plateau_lowers_the_rate_of_the_run(tiny_vgg, images):
    worse = iter(range(100, 0, -1))
    found = fit(
        tiny_vgg,
        images,
        recipe(epochs=9, schedule="plateau"),
        validate=lambda *_: {"validation_accuracy": next(worse) / 100},
    )
    rates = [row["learning_rate"] for row in found[0].history]
    assert rates[:7] == pytest.approx([1e-3] * 7)
    assert rates[7:] == pytest.approx([0.75e-3] * 2)


@pytest.mark.parametrize(
    "steps", [pytest.param(1, marks=EXHAUSTIVE), 2, pytest.param(3, marks=EXHAUSTIVE)]
)
def test_a_stopped_training_resumes_to_the_bit(tiny_vgg, images, tmp_path, steps):
    """Stopped after any of four steps: weights, statistics, best epoch and history are the same."""
    best = iter([0.5, 0.4])
    validate = lambda *_: {"validation_accuracy": next(best)}
    whole = fit(tiny_vgg, images, validate=validate)[0]
    best = iter([0.5, 0.4])
    with pytest.raises(Killed):
        fit(
            tiny_vgg,
            images,
            validate=validate,
            checkpoints=tmp_path,
            save_every=0.0,
            progress=killer(32 * steps),
        )
    again = fit(tiny_vgg, images, validate=validate, checkpoints=tmp_path, save_every=0.0)[0]
    assert_same((whole.params, whole.rest, whole.last), (again.params, again.rest, again.last))
    assert (whole.best_epoch, again.best_epoch) == (1, 1)
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in again.history]
    assert any(
        (a != b).any() for a, b in zip(leaves(whole.params), leaves(whole.last[0]), strict=True)
    )


def test_a_finished_training_is_only_read(tiny_vgg, images, tmp_path):
    one = fit(tiny_vgg, images, checkpoints=tmp_path)[0]
    again = fit(tiny_vgg, images, checkpoints=tmp_path, progress=killer(0))[0]
    assert_same(one.last, again.last)


@pytest.mark.long
def test_a_checkpoint_resumes_on_other_devices(tiny_vgg, images, tmp_path):
    whole = fit(tiny_vgg, images)[0]
    with pytest.raises(Killed):
        fit(
            tiny_vgg,
            images,
            devices=8,
            shard=True,
            checkpoints=tmp_path,
            save_every=0.0,
            progress=killer(64),
        )
    again = fit(tiny_vgg, images, checkpoints=tmp_path)[0]
    assert distance(whole.last, again.last, start_of(tiny_vgg, images)) < ROUNDING


def test_checkpoints_of_another_program_are_refused(tiny_vgg, images, tmp_path):
    fit(tiny_vgg, images, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"checkpoint 4 cannot be read .*; delete the folder"):
        fit(tiny_vgg, images, recipe(average=0.0), checkpoints=tmp_path)


def test_members_are_the_runs_of_their_own(tiny_vgg, images):
    both = members(recipe(), (0, 1), (1e-3,))
    found = fit(tiny_vgg, images, both)
    for one, result in zip(both, found, strict=True):
        alone = fit(tiny_vgg, images, one)[0]
        assert_same(alone.last, result.last)
    assert any(
        (a != b).any() for a, b in zip(leaves(found[0].last), leaves(found[1].last), strict=True)
    )


def test_recipes_of_one_program_must_agree(tiny_vgg, images):
    with pytest.raises(InputError, match="may differ in seed and learning rate only"):
        fit(tiny_vgg, images, [recipe(), recipe(momentum=0.5)])


def test_a_loss_that_is_not_finite_stops(tiny_vgg, images):
    with pytest.raises(InputError, match="the loss is nan in epoch 1"):
        # Beyond what the settings allow: the loss is surely lost.
        fit(tiny_vgg, images, recipe().model_copy(update={"learning_rate": 1e20}))
