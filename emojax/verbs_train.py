"""What `emojax train` does: builds the task, runs the recipe, writes the network with its curve of metrics."""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emojax import config, store
from emojax.console import progress, say
from emojax.data import faces as face_data
from emojax.data import seen
from emojax.data.loader import ImageSet
from emojax.data.new_clip import small_clip
from emojax.data.weights import Classifier, ClipEncoder, load_network, save_clip, save_network
from emojax.engine import evaluate as tests
from emojax.engine import tasks
from emojax.engine import train as engine
from emojax.engine.evaluate import Evaluation
from emojax.engine.network import as_network
from emojax.engine.truth import affinity
from emojax.errors import InputError
from emojax.hosts import is_first
from emojax.models.compact import CompactConfig, CompactNet
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.models.vgg import VggConfig, VggNet

Report = Callable[[dict[str, float]], None]


def recipes(options: config.Train) -> list[engine.Recipe]:
    """The recipes that settings describe: one for each seed and learning rate."""
    same = ("epochs", "optimizer", "schedule", "learning_rate", "warmup", "weight_decay", "momentum", "average", "seed")
    recipe = engine.Recipe(**{name: getattr(options, name) for name in same})
    return engine.members(recipe, options.seeds, options.learning_rates)


def new_network(options: config.Train, images: ImageSet, seed: int) -> Classifier:
    """A random network for a labelled set."""
    if options.task == "deep_emotion":
        return DeepEmotion(DeepEmotionConfig(images.images.shape[-1], len(images.classes)), rngs=nnx.Rngs(seed))
    if options.task == "compact":
        sizes = CompactConfig() if options.size == "paper" else CompactConfig.small()
        return CompactNet(replace(sizes, classes=len(images.classes)), rngs=nnx.Rngs(seed))
    sizes = VggConfig.paper() if options.size == "paper" else VggConfig.small()
    return VggNet(replace(sizes, classes=len(images.classes)), rngs=nnx.Rngs(seed))


def train_classifiers(
    options: config.Train,
    images: ImageSet,
    validation: ImageSet,
    report: Report,
    *,
    first: Classifier | None = None,
    protocol: tests.Protocol = "resize40",
    **how: Any,
) -> list[tuple[Classifier, engine.Result]]:
    """Networks trained on a labelled set, one for each recipe, with the best epoch's weights.

    They begin with the weights of `first`, or at random. Accuracy and NLL on the validation set, by the protocol, are
    reported after every epoch; `how` goes to `engine.fit`.
    """
    build = functools.partial(new_network, options, images)
    model, start = (first, None) if first else (nnx.eval_shape(lambda: build(0)), tasks.start_fresh(build))
    same = ("batch", "label_smoothing", "augment", "contrast", "mixup", "precision")
    task = tasks.classifier(model, images, start=start, **{name: getattr(options, name) for name in same})

    def validate(params: Any, rest: Any) -> dict[str, float]:
        found = tests.evaluate(tasks.trained(model, params, rest), validation, protocol=protocol).summary()
        return {"validation_accuracy": found["top1"], "validation_nll": found["nll"]}

    results = _fit(task, options, validate, report, how)
    return [(tasks.trained(model, result.params, result.rest), result) for result in results]


def _fit(
    task: engine.Task, options: config.Train, validate: Any, report: Report, how: dict[str, Any]
) -> list[engine.Result]:
    how = how | {"together": options.together, "shard": options.shard, "save_every": options.save_every}
    return engine.fit(task, recipes(options), validate=validate, report=report, **how)


def train_clip(
    options: config.Train, faces: face_data.Faces, validation: face_data.Faces, folder: Path, report: Report, **how: Any
) -> tuple[ClipEncoder, engine.Result]:
    """A new small CLIP trained on rendered faces and captions of them, written to `folder` in Hugging Face's form.

    Returns it with the result of the training.
    """
    new = small_clip(face_data.random_captions(faces, options.seed).texts, options.seed)
    longest = new.encoder.model.config.context

    @functools.lru_cache(maxsize=1)  # a new caption of every face in every epoch
    def captions(epoch: int) -> face_data.Captions:
        return face_data.random_captions(faces, options.seed + epoch)

    def tokens(epoch: int) -> np.ndarray:
        ids = new.encoder.tokenize(captions(epoch).texts)
        return np.pad(ids, ((0, 0), (0, max(0, min(32, longest) - ids.shape[1]))))  # one shape for all epochs

    pairs = tasks.Pairs(faces.render(), tokens, lambda epoch, rows: captions(epoch).true_of(faces, rows))
    task = tasks.contrastive(new.encoder, pairs, batch=options.batch)
    pictures = validation.render()

    def validate(params: Any, rest: Any) -> dict[str, float]:
        encoder = tasks.trained_clip(new.encoder, params, rest)
        known = [value for value in pair_accuracy(encoder, validation, pictures).values() if value is not None]
        return {"validation_pair_accuracy": float(np.mean(known))} if known else {}

    (result,) = _fit(task, options, validate, report, how)
    encoder = tasks.trained_clip(new.encoder, result.params, result.rest)
    save_clip(folder, encoder.model, new.hf_config, new.tokenizer)
    return encoder, result


def pair_accuracy(encoder: ClipEncoder, faces: face_data.Faces, pictures: np.ndarray) -> dict[str, float | None]:
    """For each attribute: of a face with it and one without, how often the first is closer to its name.

    Zero-shot: the names are texts like any other. Chance is one half. None where no face has it, or all have.
    """
    cosines = encoder.embed_images(pictures) @ encoder.embed_texts(face_data.ATTRIBUTES).T
    found = np.diag(affinity(cosines, faces.attributes).auroc)
    return {name: float(x) if np.isfinite(x) else None for name, x in zip(face_data.ATTRIBUTES, found, strict=True)}


def metrics_writer(path: Path) -> Report:
    """Writes each epoch's row to a file of JSON lines as it comes, and says it in one line."""

    def report(row: dict[str, float]) -> None:
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        say(", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))

    return report


def train(settings: Any, open_split: Callable[[config.Data, str], ImageSet]) -> None:
    """Trains what the settings ask for into a run folder; a run that was stopped goes on where it was."""
    options = settings.train
    store.check_out(settings.out)
    _check(settings)
    with store.run_folder(settings.out, "train", settings.model_dump(mode="json")) as run:
        if options.task == "clip":
            faces, validation = (face_data.split(name, settings.data.limit) for name in (options.split, options.validation))
            run.inputs |= {options.split: faces.key, options.validation: validation.key}
            test = None
        else:
            images, validation = (open_split(settings.data, name) for name in (options.split, options.validation))
            test = None if options.test is None else open_split(settings.data, options.test)
            run.inputs |= {images.name: images.key, validation.name: validation.key}
            _check_splits(images, validation, test)
        first = None if options.start is None else load_network(options.start)
        kept = settings.cache / "training" / _key(settings, first, *run.inputs.values())
        run.inputs |= {} if test is None else {test.name: test.key}
        if any(kept.glob("[0-9]*")):
            say(f"going on from the checkpoint in {kept}")
        report = metrics_writer(kept / "metrics.jsonl")
        with run.timed("train"), progress("train") as bar:
            how = {"progress": bar, "checkpoints": kept}
            if options.task == "clip":
                encoder, result = train_clip(options, faces, validation, run.folder / "clip", report, **how)
                trained = [(encoder, result)]
            else:
                how |= {"first": first, "protocol": settings.evaluate.protocol}
                trained = train_classifiers(options, images, validation, report, **how)
        _write_metrics(run.folder, [result for _, result in trained])
        if options.task == "clip":
            summary = {"pair_accuracy": pair_accuracy(encoder, validation, validation.render())}
        else:
            summary = _write_classifiers(settings, run, trained, images, validation, test)
        store.write_json(run.folder / "summary.json", {"task": options.task, **summary})
    if is_first():
        shutil.rmtree(kept)


def _check(settings: Any) -> None:
    options = settings.train
    if options.task == "clip":
        if settings.data.kind != "faces":
            raise InputError("a CLIP is trained on rendered faces, whose captions are known; pass --data.kind faces")
        if settings.data.exclude is not None:
            raise InputError("--data.exclude is for images; a CLIP is trained on faces that are rendered as they are needed")
        if len(recipes(options)) > 1 or options.start is not None or options.test is not None:
            raise InputError("--train.seeds, --train.learning-rates, --train.start and --train.test are not for a CLIP")
    if options.task == "deep_emotion" and settings.evaluate.protocol == "tencrop":
        raise InputError("--evaluate.protocol tencrop crops to a VGGNet's input size; use resize40 for a Deep-Emotion")


def _check_splits(images: ImageSet, validation: ImageSet, test: ImageSet | None) -> None:
    if validation.key == images.key:
        raise InputError(f"--train.validation is {images.name}, which is trained on; name another split")
    if test is not None and test.key in (images.key, validation.key):
        raise InputError(f"--train.test is {test.name}, which training or choosing uses; name another split")


def _key(settings: Any, first: Classifier | None, *images: str) -> str:
    """Content key of all that shapes this training, under which its checkpoints lie."""
    shaping = settings.train.model_dump(mode="json", exclude={"save_every", "test", "shard", "start"})
    start = None if first is None else as_network(first).key
    return store.content_key([shaping, start, images, settings.evaluate.protocol])[:32]


def _write_metrics(folder: Path, results: Sequence[engine.Result]) -> None:
    """`metrics.jsonl`, a row per epoch and network, and `curves.png`."""
    rows = [({"member": m} if len(results) > 1 else {}) | row for m, r in enumerate(results) for row in r.history]
    rows.sort(key=lambda row: row["epoch"])
    store.write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    from emojax.report import figures  # matplotlib

    figure = figures.plot_training([result.history for result in results], [result.best_epoch for result in results])
    store.write_binary(folder / "curves.png", lambda file: figures.save(figure, file))


def _write_classifiers(
    settings: Any,
    run: store.Run,
    trained: Sequence[tuple[Classifier, engine.Result]],
    images: ImageSet,
    validation: ImageSet,
    test: ImageSet | None,
) -> dict[str, Any]:
    """Networks, best and last, and what the summary says of them."""
    before = None if settings.train.start is None else seen.read(settings.train.start)
    if settings.train.start is None or before is not None:
        uses = [*(before or ()), seen.of(images, "trained"), seen.of(validation, "chosen")]
    else:
        uses = None  # what the first weights had seen is not known, so neither is what these have
    members = []
    for number, ((model, result), recipe) in enumerate(zip(trained, recipes(settings.train), strict=True)):
        tail = f"_{number}" if len(trained) > 1 else ""
        save_network(model, run.folder / f"model{tail}.safetensors", seen=uses)
        last = tasks.trained(model, *result.last)
        save_network(last, run.folder / f"last{tail}.safetensors", seen=uses)
        members.append({"seed": recipe.seed, "learning_rate": recipe.learning_rate, "best_epoch": result.best_epoch})
    summary: dict[str, Any] = {"members": members}
    for role, images_of_role in (("validation", validation), ("test", test)):
        if images_of_role is not None:
            found = _tested(settings, run, [model for model, _ in trained], images, images_of_role)
            summary[role] = {name: result.summary() for name, result in found.items()}
            for name, result in found.items():
                say(f"{name}: {result.top(1):.2%} of {len(result.labels)} right, NLL {result.nll():.4f}")
    return summary


def _tested(
    settings: Any, run: store.Run, models: Sequence[Classifier], images: ImageSet, test: ImageSet
) -> dict[str, Evaluation]:
    """Each network on a split, all of them as an ensemble, and the same without copies of images trained on."""
    found = {}
    how = {"protocol": settings.evaluate.protocol, "batch": settings.evaluate.batch}
    with run.timed("evaluate"), progress(test.name) as bar:
        for number, model in enumerate(models):
            name = f"{test.name}, member {number}" if len(models) > 1 else test.name
            found[name] = tests.evaluate(model, test, progress=bar, **how)
    if len(models) > 1:
        found[f"{test.name}, ensemble"] = tests.average(*found.values())
    new = {f"{name}, no copies of {images.name}": tests.without_copies(r, test, images) for name, r in found.items()}
    return found | new
