"""`emojax judge`: scores anybody's explanations of a network's units on images that did not make
them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    import numpy as np

    from emojax.data.clip_encoder import ClipEncoder
    from emojax.data.image_set import ImageSet
    from emojax.dissection.judge import Difference, Judgement, Sanity


class JudgeSettings(WritesRun):
    """Settings of a judgement."""

    files: tuple[UserPath, ...] = Field(
        default=(), description="files of explanations; the first is what others are compared with"
    )
    data: settings.Data = settings.Data()
    target: settings.Target = settings.Target()
    clip: settings.Clip = settings.Clip()
    calibration: settings.Calibration = settings.Calibration()
    judge: settings.Judge = settings.Judge()
    out: UserPath = out_folder("judge")


def judge(settings: JudgeSettings) -> None:
    """Scores files of explanations on the test splits."""
    from dataclasses import replace

    import numpy as np

    from emojax import store
    from emojax.commands import opening, steps
    from emojax.commands.console import say_written, warn, working
    from emojax.dissection import explanation_files, judge, truth
    from emojax.errors import InputError
    from emojax.probing.network import as_network

    if not settings.files:
        raise InputError("name a file of explanations: emojax judge FILE")
    if len(set(settings.files)) < len(settings.files):
        raise InputError("a file of explanations is named twice")
    model = opening.open_target(settings.target)
    tests = opening.open_test_splits(settings.data)
    units = steps.units_of(model, tests[0])
    files = [
        replace(explanation_files.read(path, units), name=name)
        for path, name in zip(settings.files, _names(settings.files), strict=True)
    ]
    clip = opening.open_clip(settings.clip)
    concepts = list(dict.fromkeys(name for file in files for name in file.concepts))
    if not concepts:
        raise InputError(f"{settings.files[0]}: no concept in it")
    clip.tokenize(concepts)  # refuses what is too long before any work
    warnings = [line for path in settings.files for line in _provenance(path, tests, clip)]

    options = settings.judge
    with opening.open_run(settings, "judge") as run:
        run.inputs |= {"clip": clip.key, **{test.name: test.key for test in tests}}
        run.inputs |= {str(path): store.content_key(path.read_bytes()) for path in settings.files}
        used = {e.layer for file in files for e in file.explanations}
        layers = [layer for layer in units if layer in used]
        network = as_network(model, taps=options.taps)
        with run.timed("activations"), working("activations"):
            activations = np.concatenate(
                [truth.activations(network, test, layers, options.pool) for test in tests]
            )
        with run.timed("embeddings"), working("embeddings"):
            images = np.concatenate([clip.embed_images(test.images) for test in tests])
            texts = clip.embed_texts(concepts)
        with run.timed("judge"), working("judge"):
            judgements = judge_files(
                files, layers, units, activations, concepts, images, texts, settings
            )
            first, *others = judgements
            compared = (judge.compare(first, other) for other in others)
            differences = [difference for difference in compared if difference is not None]
        with run.timed("sanity"), working("sanity"):
            present = _present(concepts, images, texts, settings)
            sanity = judge.sanity(activations, present, alpha=options.alpha, seed=options.seed)
        write(run.folder, judgements, differences, sanity, warnings)
    print_judgement(judgements, differences, sanity)
    say_written(settings.out)
    for line in warnings:
        warn(line)


def _names(paths: Sequence[Path]) -> list[str]:
    """What files are called in tables: the shortest ends of their paths that differ."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [Path(*path.parts[-parts:]).as_posix() for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _present(
    concepts: Sequence[str], images: "np.ndarray", texts: "np.ndarray", settings: JudgeSettings
) -> "np.ndarray":
    """Which images show each concept, by the encoder."""
    from emojax.dissection import explanation_files, judge

    places = {name: place for place, name in enumerate(concepts)}
    singles = [
        explanation_files.Explanation("", 0, (name,), (1.0,), 0.0, linear=False)
        for name in concepts
    ]
    alpha = settings.judge.alpha
    return judge.simulate(singles, places, images, texts, settings.calibration, alpha).present


def judge_files(
    files: Sequence[Any],
    layers: Sequence[str],
    sizes: "dict[str, int]",
    activations: "np.ndarray",
    concepts: Sequence[str],
    images: "np.ndarray",
    texts: "np.ndarray",
    settings: JudgeSettings,
) -> "list[Judgement]":
    """Every file judged on the same images; `activations` are of the layers, side by side."""
    from emojax.dissection import judge

    starts = {}
    start = 0
    for layer in layers:
        starts[layer] = start
        start += sizes[layer]
    names = {name: place for place, name in enumerate(concepts)}
    options = settings.judge
    results = []
    for file in files:
        columns = [starts[e.layer] + e.unit for e in file.explanations]
        simulated = judge.simulate(
            file.explanations, names, images, texts, settings.calibration, options.alpha
        )
        results.append(
            judge.judge(
                file,
                activations[:, columns],
                simulated,
                alpha=options.alpha,
                resamples=options.resamples,
                seed=options.seed,
            )
        )
    return results


def _provenance(path: Path, tests: "Sequence[ImageSet]", clip: "ClipEncoder") -> list[str]:
    """What is to be said of the images and the encoder that made a file, by its run's manifest.

    Raises:
      InputError: it was made on images that it would be judged on.
    """
    from emojax.errors import InputError
    from emojax.outputs import read_manifest

    inputs = read_manifest(path.parent).get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    lines = []
    made_on = inputs.get("images")
    if made_on is None:
        lines.append(f"{path} does not say which images made it; judge it on others")
    for test in tests:
        if made_on == test.key:
            raise InputError(
                f"{path} was made on {test.name}, which it would be judged on; "
                "name other --data.test-splits"
            )
    if inputs.get("clip") is None:
        lines.append(f"{path} does not say which encoder made it; judge it with another")
    elif inputs["clip"] == clip.key:
        lines.append(
            f"{path} was made with the encoder that judges it, which sees what it saw; "
            "another --clip.path is the better judge"
        )
    return lines


# Written and printed


def write(
    folder: Path,
    judgements: "Sequence[Judgement]",
    differences: "Sequence[Difference]",
    sanity: "dict[str, Sanity]",
    warnings: Sequence[str],
) -> None:
    """Writes `judgement.csv`, a row per file and unit; `judgement.json`, means and tests."""
    from dataclasses import asdict

    from emojax import store
    from emojax.dissection.judge import MEASURES

    header = ["file", "layer", "unit", "explanation"]
    header += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]

    def rows() -> Iterator[list[Any]]:
        for judgement in judgements:
            for number, explanation in enumerate(judgement.file.explanations):
                cells = [judgement.file.name, explanation.layer, explanation.unit]
                scores = judgement.scores[:, number]
                ends = judgement.intervals[:, :, number]
                values = [v for each in zip(scores, *ends, strict=True) for v in each]
                yield [*cells, explanation.text(), *values]

    store.write_csv(folder / "judgement.csv", header, rows())
    summary = {
        "files": {judgement.file.name: judgement.mean() for judgement in judgements},
        "units": {j.file.name: len(j.file.explanations) for j in judgements},
        "differences": [asdict(difference) for difference in differences],
        "sanity": {name: asdict(result) for name, result in sanity.items()},
        "warnings": list(warnings),
    }
    store.write_json(folder / "judgement.json", summary)


def print_judgement(
    judgements: "Sequence[Judgement]",
    differences: "Sequence[Difference]",
    sanity: "dict[str, Sanity]",
) -> None:
    """The means of every file, the differences to the first, and which measures can be trusted."""
    from rich.table import Table

    from emojax.commands.console import console, say
    from emojax.dissection.judge import MEASURES, SANITY_SHARE

    def cells(measures: Mapping[str, tuple[float, float, float]], sign: str) -> Iterator[str]:
        for value, low, high in measures.values():
            yield f"{value:{sign}.3f} ±{(high - low) / 2:.3f}"

    table = Table("explanations", "units", *MEASURES, title="Mean over units ± half its interval")
    for judgement in judgements:
        number = str(len(judgement.file.explanations))
        table.add_row(judgement.file.name, number, *cells(judgement.mean(), ""))
    for each in differences:
        name = f"{each.second} less {each.first}"
        table.add_row(name, str(each.units), *cells(each.measures, "+"))
    console.print(table)
    noticed = [name for name, result in sanity.items() if result.passes]
    say(
        f"sanity on these images: {len(noticed)} of {len(sanity)} measures notice missing and "
        f"extra labels in {SANITY_SHARE:.0%} of the units: {', '.join(noticed)}"
    )
    for name in MEASURES:
        result = sanity[name]
        if not result.passes:
            say(
                f"  {name} does not: missing labels in {result.missing:.0%}, extra labels in "
                f"{result.extra:.0%}"
            )


COMMAND = Command(
    "judge",
    "score anybody's explanations on other images (emojax judge FILE FILE)",
    JudgeSettings,
    judge,
    positional="--files",
)
