"""From what the settings name to built objects: image sets, networks, CLIPs; and the run folder to
write.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from emojax import interruption, store
from emojax.commands import classes
from emojax.commands.base import Dissecting, Testing, WritesRun
from emojax.commands.console import say, say_written, warn
from emojax.commands.factory import open_factory
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.clip_folder import load_clip
from emojax.data.concepts import ConceptSet, load_concepts
from emojax.data.image_set import ImageSet
from emojax.data.network_folder import load_network as load_folder
from emojax.data.opening import open_split
from emojax.data.provenance import overlap_warnings, read_provenance
from emojax.data.weights import load_network
from emojax.distributed.devices import describe_devices, unused_accelerators
from emojax.errors import InputError
from emojax.models.classifier import Classifier
from emojax.probing.network import Network, as_editable
from emojax.section import user_path
from emojax.settings import Clip, Data, Target

_Value = TypeVar("_Value")
# Commands whose work is the devices'.
_COMPUTING = {
    *("demo", "run", "probe", "dissect", "labels", "explain", "judge", "sweep"),
    *("train", "evaluate"),
}


class StudyInputs(NamedTuple):
    """What a study of edits starts from.

    Attributes:
      model: the network, its outputs named.
      clip: what images and concepts are embedded with.
      concepts: to label units with.
      images: the probe images.
      tests: labelled test splits.
      class_names: as the weights file gives them; None where the order had to be assumed.
    """

    model: Classifier | Network
    clip: ClipEncoder
    concepts: ConceptSet
    images: ImageSet
    tests: Sequence[ImageSet]
    class_names: Sequence[str] | None


def needed(value: _Value | None, flag: str, what: str) -> _Value:
    """The value of a setting that the command cannot do without.

    Raises:
      InputError: it was not given; the message says what it is.
    """
    if value is None:
        raise InputError(f"{flag} is needed: {what}")
    return value


def open_split_of(data: Data, split: str) -> ImageSet:
    """A split of the settings' data set."""
    pairs = (pair.partition("=") for pair in data.class_map)
    return open_split(
        data.path,
        split,
        kind=data.kind,
        size=data.size,
        limit=data.limit,
        draw=data.draw,
        seed=data.draw_seed,
        exclude=data.exclude,
        class_map={old.strip(): new.strip() for old, _, new in pairs},
    )


def open_probe_set(data: Data) -> ImageSet:
    """The split that is probed. Warns of one in which nothing can differ by class."""
    images = open_split_of(data, data.probe_split)
    if images.labels is not None and (images.labels == images.labels[0]).all():
        label = images.classes[images.labels[0]]
        warn(
            f"all {len(images)} images of {images.name} are of the class {label!r}: labels can "
            "only tell what differs within it, and their description accuracy means nothing"
        )
    return images


def open_test_splits(data: Data) -> list[ImageSet]:
    """The splits to test on."""
    return [open_split_of(data, split) for split in data.test_splits]


def open_target(target: Target) -> Classifier | Network:
    """The network under study, its outputs named where the file or the settings name them.

    Raises:
      InputError: not one of the three settings that name a network is given, or it is refused.
    """
    given = {
        "--target.weights": target.weights,
        "--target.path": target.path,
        "--target.factory": target.factory,
    }
    named = [flag for flag, value in given.items() if value is not None]
    if not named:
        raise InputError(
            "--target.weights is needed: weights of a VGGNet, Deep-Emotion or CompactNet, "
            ".safetensors or a PyTorch checkpoint; or --target.path, a Hugging Face folder; "
            "or --target.factory"
        )
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} name a network each; give one")
    if target.factory is not None:
        if target.classes:
            raise InputError("--target.classes name the outputs of files, not of a factory")
        return open_factory(target.factory, target.key)
    if target.weights is not None:
        return classes.given(load_network(target.weights), target)
    return classes.given(load_folder(str(target.path)), target)


def name_of(target: Target) -> Path:
    """The file whose metadata may say more of the network, or what else names it, for messages."""
    if target.weights is not None:
        return target.weights
    if target.path is None:
        return Path(str(target.factory))
    folder = user_path(target.path)
    file = folder / "model.safetensors"
    return file if file.is_file() else folder


def open_tested(
    settings: Dissecting | Testing,
) -> tuple[Classifier | Network, list[ImageSet], Sequence[str] | None]:
    """The network, its outputs named; the test splits; the class names as the file gives them.

    The last is None where the file names none, and the order had to be assumed.
    """
    model = open_target(settings.target)
    tests = open_test_splits(settings.data)
    if isinstance(model, Network):  # its outputs are taken in the images' order
        return model, tests, None
    known = model.config.class_names
    return classes.settle(model, name_of(settings.target), tests), tests, known


def open_clip(clip: Clip, data: Data | None = None) -> ClipEncoder:
    """The CLIP that images and concepts are embedded with.

    Warns of one that knows other images than those of `data`, where its settings say what it knows.
    """
    what = "a Hugging Face CLIP folder or hub name, e.g. openai/clip-vit-base-patch16"
    encoder = load_clip(needed(clip.path, "--clip.path", what), dtype=clip.dtype)
    if encoder.trained_on is not None and data is not None and data.kind != "faces":
        warn(
            f"{encoder.name} was trained on {encoder.trained_on} alone: of other images its labels "
            "mean little, however many are above chance; give --clip.path a CLIP that knows them"
        )
    return encoder


def open_study(settings: Dissecting) -> StudyInputs:
    """All that the settings of a study name; the cheapest to refuse comes first."""
    concepts = load_concepts(settings.concepts.path)
    model, tests, class_names = open_tested(settings)
    clip = open_clip(settings.clip, settings.data)
    images = open_probe_set(settings.data)
    if isinstance(model, Network):
        model = as_editable(model, images.images.shape[1:]) or model
    return StudyInputs(model, clip, concepts, images, tests, class_names)


def name_devices() -> None:
    """Says what a command computes on, and warns of an accelerator that it leaves idle."""
    say(f"devices: {describe_devices()}")
    idle = unused_accelerators()
    if idle is not None:
        warn(idle)


def open_run(settings: WritesRun, command: str, **extra: Any) -> AbstractContextManager[store.Run]:
    """The run folder that a command writes; `extra` goes beside the settings into its manifest.

    Of a command that computes, the devices are named, and warned is of one that is left idle.
    """
    interruption.begin_work()
    if command in _COMPUTING:
        name_devices()
    dumped = settings.model_dump(mode="json") | extra
    return store.run_folder(settings.out, command, dumped, overwrite=settings.overwrite)


def note_provenance(
    run: store.Run, weights: Path, tests: Sequence[ImageSet], class_names: Sequence[str] | None
) -> list[str]:
    """Puts what the weights have been trained and chosen on into the manifest, and their class
    names.

    Returns warnings of test splits among these images, to end the command with.
    """
    uses = read_provenance(weights)
    run.target = {
        "seen": None if uses is None else [use._asdict() for use in uses],
        "classes": None if class_names is None else list(class_names),
    }
    return overlap_warnings(uses, weights.name, tests)


def end_with(out: Path, warnings: Sequence[str]) -> None:
    """The last lines of a command that tests a network: its files, then what to beware of."""
    say_written(out)
    for line in warnings:
        warn(line)
