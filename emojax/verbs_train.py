"""What `emojax train` does: builds the task, runs the recipe, writes the network with its curve of metrics."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emojax import config, store
from emojax.console import progress, say
from emojax.data import faces as face_data
from emojax.data.loader import ImageSet
from emojax.data.new_clip import small_clip
from emojax.data.weights import ClipEncoder, save_clip, save_vgg
from emojax.engine import train as engine
from emojax.engine.evaluate import evaluate
from emojax.engine.truth import affinity
from emojax.errors import InputError
from emojax.models.vgg import VggConfig, VggNet

Report = Callable[[dict[str, float]], None]
Progress = Callable[[int, int], None]


def recipe(options: config.Train) -> engine.Recipe:
    """The recipe that settings describe."""
    same = ("epochs", "optimizer", "learning_rate", "warmup", "weight_decay", "momentum", "average", "seed")
    return engine.Recipe(**{name: getattr(options, name) for name in same})


def train_vgg(
    options: config.Train, images: ImageSet, validation: ImageSet, report: Report, bar: Progress | None = None
) -> VggNet:
    """A new VGGNet trained on a labelled set; accuracy and NLL on the validation set are reported after every epoch."""
    sizes = VggConfig.paper() if options.size == "paper" else VggConfig.small()
    model = nnx.jit(lambda: VggNet(sizes, rngs=nnx.Rngs(options.seed)))()
    task = engine.classifier(model, images, batch=options.batch, seed=options.seed, label_smoothing=options.label_smoothing)

    def validate(params: Any, rest: Any) -> dict[str, float]:
        found = evaluate(engine.trained(model, engine.Result(params, rest, [])), validation).summary()
        return {"validation_accuracy": found["top1"], "validation_nll": found["nll"]}

    result = engine.fit(task, recipe(options), validate=validate, report=report, progress=bar)
    return engine.trained(model, result)


def train_clip(
    options: config.Train,
    faces: face_data.Faces,
    validation: face_data.Faces,
    folder: Path,
    report: Report,
    bar: Progress | None = None,
) -> ClipEncoder:
    """A new small CLIP trained on rendered faces and captions of them, written to `folder` in Hugging Face's form."""
    new = small_clip(face_data.random_captions(faces, options.seed).texts, options.seed)
    longest = new.encoder.model.config.context

    @functools.lru_cache(maxsize=1)  # a new caption of every face in every epoch
    def captions(epoch: int) -> face_data.Captions:
        return face_data.random_captions(faces, options.seed + epoch)

    def tokens(epoch: int) -> np.ndarray:
        ids = new.encoder.tokenize(captions(epoch).texts)
        return np.pad(ids, ((0, 0), (0, max(0, min(32, longest) - ids.shape[1]))))  # one shape for all epochs

    pairs = engine.Pairs(faces.render(), tokens, lambda epoch, rows: captions(epoch).true_of(faces, rows))
    task = engine.contrastive(new.encoder, pairs, batch=options.batch, seed=options.seed)
    pictures = validation.render()

    def validate(params: Any, rest: Any) -> dict[str, float]:
        encoder = engine.trained_clip(new.encoder, engine.Result(params, rest, []))
        known = [value for value in pair_accuracy(encoder, validation, pictures).values() if value is not None]
        return {"validation_pair_accuracy": float(np.mean(known))} if known else {}

    result = engine.fit(task, recipe(options), validate=validate, report=report, progress=bar)
    encoder = engine.trained_clip(new.encoder, result)
    save_clip(folder, encoder.model, new.hf_config, new.tokenizer)
    return encoder


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
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))

    return report


def train(settings: Any, open_split: Callable[[config.Data, str], ImageSet]) -> None:
    """Trains what the settings ask for into a run folder."""
    options = settings.train
    store.check_out(settings.out)
    if options.task == "clip" and settings.data.kind != "faces":
        raise InputError("a CLIP is trained on rendered faces, whose captions are known; pass --data.kind faces")
    if options.task == "clip" and settings.data.exclude is not None:
        raise InputError("--data.exclude is for images; a CLIP is trained on faces that are rendered as they are needed")
    with store.run_folder(settings.out, "train", settings.model_dump(mode="json")) as run, progress("train", "steps") as bar:
        report = metrics_writer(run.folder / "metrics.jsonl")
        with run.timed("train"):
            if options.task == "clip":
                faces, validation = (
                    face_data.split(name, settings.data.limit) for name in (options.split, options.validation)
                )
                run.inputs |= {options.split: faces.key, options.validation: validation.key}
                encoder = train_clip(options, faces, validation, run.folder / "clip", report, bar)
                summary = {"pair_accuracy": pair_accuracy(encoder, validation, validation.render())}
            else:
                images, validation = (open_split(settings.data, name) for name in (options.split, options.validation))
                run.inputs |= {images.name: images.key, validation.name: validation.key}
                model = train_vgg(options, images, validation, report, bar)
                save_vgg(model, run.folder / "model.safetensors")
                summary = {"validation": evaluate(model, validation).summary()}
        store.write_json(run.folder / "summary.json", {"task": options.task, **summary})
