"""`emojax train`: networks on labelled images, or a small CLIP on rendered faces."""

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.errors import InputError
from emojax.section import UserPath
from emojax.training.recipe import Recipe, members

if TYPE_CHECKING:
    from emojax import store
    from emojax.data.image_set import ImageSet
    from emojax.synthetic.faces import Faces
    from emojax.training.classifiers import Classifier, TrainedClassifier
    from emojax.training.evaluate import Evaluation
    from emojax.training.fit import Report, Result

_KEY_FORMAT = 2  # of what the checkpoints of a training hold


class TrainSettings(WritesRun):
    """Settings of a training."""

    data: settings.Data = settings.Data()
    train: settings.Train = settings.Train()
    evaluate: settings.Evaluate = settings.Evaluate()
    cache: UserPath = settings.CACHE
    out: UserPath = out_folder("train")


def train(settings: TrainSettings) -> None:
    """Trains what the settings ask for into a run folder; a training that was stopped resumes."""
    from emojax.commands.console import say_written

    _check(settings)
    if settings.train.task == "clip":
        _train_clip(settings)
    else:
        _train_classifiers(settings)
    say_written(settings.out)


def _train_classifiers(settings: TrainSettings) -> None:
    """Trains classifiers, one for each recipe."""
    from emojax.commands import classes, opening
    from emojax.commands.console import progress
    from emojax.data.weights import load_network
    from emojax.models.tapped import TappedNetwork
    from emojax.training import classifiers

    options = settings.train
    with contextlib.ExitStack() as lock:
        with opening.open_run(settings, "train") as run:
            images = opening.open_split_of(settings.data, options.split)
            validation = opening.open_split_of(settings.data, options.validation)
            test = None
            if options.test is not None:
                test = opening.open_split_of(settings.data, options.test)
            run.inputs |= {images.name: images.key, validation.name: validation.key}
            _check_splits(images, validation, test)
            first = None
            if options.start is not None:
                first = load_network(options.start)
                if isinstance(first, TappedNetwork):
                    raise InputError(
                        f"{options.start} is a {type(first).__name__}; only a VGGNet, "
                        "Deep-Emotion or CompactNet is trained further"
                    )
                tested = [split for split in (images, validation, test) if split is not None]
                # From here on its class names are known: it is trained to them.
                first = classes.settle(first, options.start, tested, cure="")
            checkpoints = settings.cache / "training" / _key(settings, first, images, validation)
            _lock(lock, checkpoints)
            if test is not None:
                run.inputs[test.name] = test.key
            with run.timed("train"), progress("train") as bar:
                trained = classifiers.train_classifiers(
                    first or _new_networks(options, images),
                    _recipes(options),
                    images,
                    validation,
                    batch=options.batch,
                    augment=options.augment,
                    precision=options.precision,
                    label_smoothing=options.label_smoothing,
                    protocol=settings.evaluate.protocol,
                    shard=options.shard,
                    report=epoch_reporter(checkpoints / "metrics.jsonl"),
                    progress=bar,
                    checkpoints=checkpoints,
                    save_every=options.save_every,
                )
            _write_metrics(run.folder, [network.result for network in trained])
            summary = _save_classifiers(settings, run, trained, images, validation)
            models = [network.model for network in trained]
            summary["validation"] = _tested(settings, run, models, images, validation)
            if test is not None:
                summary["test"] = _tested(settings, run, models, images, test)
            _write_summary(run.folder, options.task, summary)
        _delete(checkpoints)


def _train_clip(settings: TrainSettings) -> None:
    """Trains a small CLIP on rendered faces."""
    from emojax.commands import opening
    from emojax.commands.console import progress
    from emojax.data.clip_folder import save_clip
    from emojax.models.clip import Clip
    from emojax.synthetic import faces
    from emojax.training import contrastive

    options = settings.train
    with contextlib.ExitStack() as lock:
        with opening.open_run(settings, "train") as run:
            people = faces.split(options.split, settings.data.limit)
            validation = faces.split(options.validation, settings.data.limit)
            run.inputs |= {options.split: people.key, options.validation: validation.key}
            checkpoints = settings.cache / "training" / _key(settings, None, people, validation)
            _lock(lock, checkpoints)
            with run.timed("train"), progress("train") as bar:
                clip, result = contrastive.train_clip(
                    _recipe(options),
                    people,
                    validation,
                    batch=options.batch,
                    shard=options.shard,
                    report=epoch_reporter(checkpoints / "metrics.jsonl"),
                    progress=bar,
                    checkpoints=checkpoints,
                    save_every=options.save_every,
                )
                model = clip.encoder.model
                assert isinstance(model, Clip)  # no SigLIP is trained here
                save_clip(run.folder / "clip", model, clip.hf_config, clip.tokenizer)
            _write_metrics(run.folder, [result])
            accuracy = contrastive.pair_accuracy(clip.encoder, validation, validation.render())
            _write_summary(run.folder, options.task, {"pair_accuracy": accuracy})
        _delete(checkpoints)


def _recipe(options: settings.Train) -> Recipe:
    """The recipe among the settings of a training."""
    return Recipe(**{name: getattr(options, name) for name in Recipe.model_fields})


def _recipes(options: settings.Train) -> list[Recipe]:
    """One for each seed and learning rate."""
    return members(_recipe(options), options.seeds, options.learning_rates)


def _new_networks(options: settings.Train, images: "ImageSet") -> "Callable[[int], Classifier]":
    """Seed → a random network."""
    from emojax.training.classifiers import Architecture, new_network

    assert options.task != "clip"  # has no such network
    architecture: Architecture = options.task
    return lambda seed: new_network(architecture, images, seed, size=options.size)


def epoch_reporter(path: Path) -> "Report":
    """Writes each epoch's row to a file of JSON lines as it comes, and says it in one line."""
    from emojax import store
    from emojax.commands.console import say
    from emojax.distributed.processes import is_main_process

    def report(row: dict[str, int | float]) -> None:
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(store.json_line(row))
        say(", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))

    return report


def _check(settings: TrainSettings) -> None:
    """Refuses settings that do not go together.

    Raises:
      InputError: they do not.
    """
    options = settings.train
    if options.task == "clip":
        if settings.data.kind != "faces":
            raise InputError(
                "a CLIP is trained on rendered faces, whose captions are known; "
                "pass --data.kind faces"
            )
        if settings.data.exclude is not None:
            raise InputError(
                "--data.exclude is for images; a CLIP is trained on faces that are rendered as "
                "they are needed"
            )
        several = len(_recipes(options)) > 1
        if several or options.start is not None or options.test is not None:
            raise InputError(
                "--train.seeds, --train.learning-rates, --train.start and --train.test "
                "are not for a CLIP"
            )
    whole_faces = {"deep_emotion": "a Deep-Emotion", "vit": "a ViT"}
    if options.task in whole_faces and settings.evaluate.protocol == "tencrop":
        raise InputError(
            "--evaluate.protocol tencrop crops to the network's input size; "
            f"use resize40 for {whole_faces[options.task]}"
        )
    if options.task == "vit" and (options.augment, options.precision) != ("flip", "float32"):
        raise InputError(
            "--train.augment and --train.precision are not for a ViT, which learns from mirrored "
            "faces in float32"
        )


def _check_splits(images: "ImageSet", validation: "ImageSet", test: "ImageSet | None") -> None:
    """Refuses to train, choose and test on the same images.

    Raises:
      InputError: two of the splits are the same.
    """
    if validation.key == images.key:
        raise InputError(
            f"--train.validation is {images.name}, which is trained on; name another split"
        )
    if test is not None and test.key in (images.key, validation.key):
        raise InputError(
            f"--train.test is {test.name}, which training or choosing uses; name another split"
        )


def _key(
    settings: TrainSettings,
    first: "Classifier | None",
    images: "ImageSet | Faces",
    validation: "ImageSet | Faces",
) -> str:
    """Content key of all that shapes a training: the name of the folder of its checkpoints."""
    from emojax import store
    from emojax.probing.network import as_network

    no_part = {"save_every", "test", "shard", "start"}
    shaping = settings.train.model_dump(mode="json", exclude=no_part)
    start = None
    if first is not None:  # the labels that it learns are in the order of its class names
        start = [as_network(first).key, first.config.class_names]
    keys = [images.key, validation.key]
    protocol = settings.evaluate.protocol
    return store.content_key([_KEY_FORMAT, shaping, start, keys, protocol])[:32]


def _lock(lock: contextlib.ExitStack, checkpoints: Path) -> None:
    """Holds a training's checkpoints until the stack ends, and says whether it resumes.

    Raises:
      InputError: another process trains the same.
    """
    from emojax import store
    from emojax.commands.console import say
    from emojax.distributed.processes import is_main_process

    if is_main_process():
        lock.enter_context(store.locked(checkpoints))
    if any(checkpoints.glob("[0-9]*")):
        say(f"resuming from the checkpoint in {checkpoints}")


def _delete(checkpoints: Path) -> None:
    """Deletes the checkpoints of a training that is finished; while they are locked."""
    from emojax.distributed.processes import is_main_process

    if is_main_process():
        shutil.rmtree(checkpoints)


def _write_metrics(folder: Path, results: "Sequence[Result]") -> None:
    """`metrics.jsonl`, a row per epoch and network, `curves.png`, and what TensorBoard reads."""
    from emojax import store
    from emojax.report import figures
    from emojax.training.event_file import event_file

    rows = []
    for member, result in enumerate(results):
        number = {"member": member} if len(results) > 1 else {}
        rows += [number | row for row in result.history]
    rows.sort(key=lambda row: row["epoch"])
    store.write_text(folder / "metrics.jsonl", "".join(map(store.json_line, rows)))
    histories = [result.history for result in results]
    now = time.time()
    for member, history in enumerate(histories):
        place = folder / "tensorboard" / (f"member{member}" if len(results) > 1 else "")
        place.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{now:.0f}.emojax"  # by which TensorBoard finds it
        (place / name).write_bytes(event_file(history, now))
    figure = figures.plot_training(histories, [result.best_epoch for result in results])
    store.write_binary(folder / "curves.png", lambda file: figures.save(figure, file))


def _write_summary(folder: Path, task: str, summary: dict[str, Any]) -> None:
    from emojax import store

    store.write_json(folder / "summary.json", {"task": task, **summary})


def _save_classifiers(
    settings: TrainSettings,
    run: "store.Run",
    trained: "Sequence[TrainedClassifier]",
    images: "ImageSet",
    validation: "ImageSet",
) -> dict[str, Any]:
    """Saves every network, best and last, with its provenance; returns the summary of all."""
    from emojax.data.network_folder import save_new
    from emojax.data.provenance import read_provenance, use_of
    from emojax.data.weights import save_network
    from emojax.models.vit import Vit
    from emojax.training import classifiers

    start = settings.train.start
    uses = None
    earlier = None if start is None else read_provenance(start)
    if start is None or earlier is not None:
        both = [use_of(images, "trained"), use_of(validation, "chosen")]
        uses = [*(earlier or ()), *both]
    # Else the provenance of the first weights is unknown, and so is that of these.
    described = []
    for number, network in enumerate(trained):
        tail = f"_{number}" if len(trained) > 1 else ""
        last = classifiers.trained(network.model, *network.result.last)
        for name, model in (("model", network.model), ("last", last)):
            if isinstance(model, Vit):
                save_new(model, run.folder / f"{name}{tail}", uses=uses)
            else:
                save_network(model, run.folder / f"{name}{tail}.safetensors", uses=uses)
        recipe = _recipes(settings.train)[number]
        described.append(
            {
                "seed": recipe.seed,
                "learning_rate": recipe.learning_rate,
                "best_epoch": network.result.best_epoch,
            }
        )
    return {"members": described}


def _tested(
    settings: TrainSettings,
    run: "store.Run",
    models: "Sequence[Classifier]",
    images: "ImageSet",
    test: "ImageSet",
) -> dict[str, Any]:
    """Tests the networks on a split, and all of them as an ensemble; prints and summarizes each.

    Each is tested on the whole split, and on it without duplicates of the images trained on.
    """
    from emojax.commands.console import progress, say
    from emojax.training import evaluate as testing

    results: dict[str, Evaluation] = {}
    with run.timed("evaluate"), progress(test.name) as bar:
        for number, model in enumerate(models):
            name = f"{test.name}, member {number}" if len(models) > 1 else test.name
            results[name] = testing.evaluate(
                model,
                test,
                protocol=settings.evaluate.protocol,
                batch=settings.evaluate.batch,
                progress=bar,
            )
    if len(models) > 1:
        results[f"{test.name}, ensemble"] = testing.average(*results.values())
    for name, result in list(results.items()):
        new = testing.without_duplicates(result, test, images)
        results[f"{name}, no copies of {images.name}"] = new
    for name, result in results.items():
        say(f"{name}: {result.top(1):.2%} of {len(result.labels)} right, NLL {result.nll():.4f}")
    return {name: result.summary() for name, result in results.items()}


COMMAND = Command(
    "train",
    "train a VGGNet, Deep-Emotion, CompactNet or ViT on labelled images, or a small CLIP on faces",
    TrainSettings,
    train,
    short={"--task": "--train.task"},
)
