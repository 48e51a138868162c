"""Trains the two small networks that ship with emojax, on rendered faces, and tests them.

    python scripts/build_demo_assets.py      # writes emojax/synthetic/assets/

The third, which leans on glasses, is the first of `scripts/shortcuts.py`, halved; it is kept:

    python scripts/shortcuts.py --out shortcuts --seeds 1 --world planted --share 0.97 --epochs 4
    python scripts/build_fer2013_weights.py shortcuts/planted_0.safetensors \
        --out emojax/synthetic/assets/shortcut.safetensors

Half an hour on 2 busy cores. Seeded: the same machine gives the same files. `metrics.json` beside
them holds accuracies on faces that were not trained on, the settings and the time it took.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path

import tyro

ASSETS = Path(__file__).parents[1] / "emojax" / "synthetic" / "assets"


@dataclasses.dataclass
class Options:
    """What to train, and where to put it."""

    out: Path = ASSETS
    clip_faces: int = 30_000
    clip_epochs: int = 12
    vgg_faces: int = 20_000
    vgg_epochs: int = 7
    test_faces: int = 4_000


def main(options: Options) -> None:
    """Trains both and writes the folder."""
    from emojax import outputs, store
    from emojax import settings as config
    from emojax.commands.train import epoch_reporter
    from emojax.data.clip_folder import load_clip, save_clip
    from emojax.data.provenance import use_of
    from emojax.data.weights import save_vgg
    from emojax.synthetic import faces
    from emojax.training.classifiers import new_network, train_classifiers
    from emojax.training.contrastive import pair_accuracy, train_clip
    from emojax.training.evaluate import evaluate

    started = time.perf_counter()
    # The assets that ship are replaced, no other folder is.
    check = (lambda _: None) if options.out == ASSETS else outputs.check_empty
    with store.atomic_folder(options.out, check) as folder, tempfile.TemporaryDirectory() as log:
        train = config.Train(
            task="clip",
            epochs=options.clip_epochs,
            batch=128,
            learning_rate=1e-3,
            weight_decay=0.05,
            average=0.999,
        )
        people = faces.split("training", options.clip_faces)
        watched = faces.split("public_test", options.test_faces)
        report = epoch_reporter(Path(log) / "clip.jsonl")
        clip, _ = train_clip(train, people, watched, batch=train.batch, report=report)
        save_clip(folder / "clip", clip.encoder.model, clip.hf_config, clip.tokenizer)
        seconds_clip = time.perf_counter() - started

        train_vgg = config.Train(
            epochs=options.vgg_epochs,
            batch=64,
            learning_rate=3e-3,
            weight_decay=0.01,
            average=0.998,
        )
        images = faces.split("training", options.vgg_faces).image_set("faces/training")
        validation = watched.image_set("faces/public_test")
        report = epoch_reporter(Path(log) / "vgg.jsonl")
        ((model, _),) = train_classifiers(
            lambda seed: new_network("vgg", images, seed),
            train_vgg,
            images,
            validation,
            batch=train_vgg.batch,
            report=report,
        )
        uses = [use_of(images, "trained"), use_of(validation, "chosen")]
        save_vgg(model, folder / "vgg.safetensors", uses=uses)

        held_out = faces.split("private_test", options.test_faces)  # not looked at while training
        pictures = held_out.render()
        pairs = pair_accuracy(load_clip(folder / "clip"), held_out, pictures)
        tested = evaluate(model, held_out.image_set("faces/private_test")).summary()
        assert None not in pairs.values(), "too few test faces to see every attribute"
        concepts = [value for name, value in pairs.items() if name not in faces.DISTRACTORS]
        metrics = {
            "clip": {
                "mean_pair_accuracy_of_the_25_concepts": sum(concepts) / len(concepts),
                "pair_accuracy": pairs,
                "settings": train.model_dump(mode="json"),
                "faces": options.clip_faces,
                "seconds": round(seconds_clip),
            },
            "vgg": {
                "test_accuracy": tested["top1"],
                "recall": tested["recall"],
                "settings": train_vgg.model_dump(mode="json"),
                "faces": options.vgg_faces,
                "seconds": round(time.perf_counter() - started - seconds_clip),
            },
            "test_faces": options.test_faces,
            "versions": store.versions(),
        }
        store.write_json(folder / "metrics.json", metrics)
        shutil.copy(ASSETS / "shortcut.safetensors", folder)
        for name in ("clip", "vgg"):
            shutil.copy(Path(log) / f"{name}.jsonl", folder / f"{name}_epochs.jsonl")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    means = {name: value for name, value in metrics["clip"].items() if name.startswith("mean")}
    print(json.dumps(means))
    print(f"VGGNet test accuracy {tested['top1']:.3f}; {size / 1e6:.2f} MB in {options.out}")


if __name__ == "__main__":
    from emojax.distributed.mesh import use_all_cores

    use_all_cores()
    main(tyro.cli(Options))
