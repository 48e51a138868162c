"""`emojax evaluate`: accuracy, recall per class, NLL and confusion on labelled splits."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from emojax.commands.base import Command, Testing, out_folder
from emojax.section import UserPath

if TYPE_CHECKING:
    from emojax.training.evaluate import Evaluation


class EvaluateSettings(Testing):
    """Settings of a test."""

    copies_of: str | None = Field(
        default=None,
        description="test also without the images that occur in this split, pixel for pixel",
    )
    out: UserPath = out_folder("evaluate")


def evaluate(settings: EvaluateSettings) -> None:
    """Tests a network on labelled splits."""
    from emojax import store
    from emojax.commands import classes, opening
    from emojax.commands.console import progress
    from emojax.probing.network import as_network
    from emojax.training import evaluate as testing

    model, tests, class_names = opening.open_tested(settings)
    weights = opening.name_of(settings.target)
    options = settings.evaluate
    with opening.open_run(settings, "evaluate") as run:
        warnings = opening.note_provenance(run, weights, tests, class_names)
        run.inputs |= {images.name: images.key for images in tests}
        run.inputs["target"] = as_network(model).key or ""
        results: dict[str, Evaluation] = {}
        with run.timed("evaluate"), progress("evaluate") as bar:
            for images in tests:
                results[images.name] = testing.evaluate(
                    model, images, protocol=options.protocol, batch=options.batch, progress=bar
                )
        if len(results) > 1:
            results["all"] = testing.join(*results.values())
        given = {name: result.summary() for name, result in results.items()}
        warnings += classes.overflowed(weights, given)
        warnings += classes.shuffled(weights, given)
        if settings.copies_of is not None:
            source = opening.open_split_of(settings.data, settings.copies_of)
            for images in tests:
                name = f"{images.name}, no copies of {settings.copies_of}"
                results[name] = testing.without_duplicates(results[images.name], images, source)
        splits = {name: result.summary() | _certainty(result) for name, result in results.items()}
        summary = {"protocol": options.protocol, "splits": splits}
        store.write_json(run.folder / "summary.json", summary)
    _print(splits)
    opening.end_with(settings.out, warnings)


def _certainty(result: "Evaluation") -> dict[str, Any]:
    """How sure the accuracy is, and how far the network's confidence is from it."""
    calibration = result.calibration()
    return {
        "top1_interval": result.accuracy_interval(),
        "calibration": None if calibration is None else calibration.as_json(),
    }


def _print(splits: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    from emojax.commands.console import console

    table = Table()
    for title in ("split", "images", "top-1", "95 %", "top-2", "macro recall", "NLL", "ECE"):
        table.add_column(title, overflow="fold")  # a number that is cut is another one
    for name, numbers in splits.items():
        low, high = numbers["top1_interval"]
        calibration = numbers["calibration"]
        table.add_row(
            name,
            str(numbers["images"]),
            f"{numbers['top1']:.3%}",
            f"{low:.1%}–{high:.1%}",
            f"{numbers['top2']:.3%}",
            f"{numbers['macro_recall']:.3%}",
            f"{numbers['nll']:.4f}",
            "–" if calibration is None else f"{calibration['error']:.3f}",
        )
    console.print(table)


COMMAND = Command(
    "evaluate",
    "test a network: accuracy, recall per class, NLL, confusion",
    EvaluateSettings,
    evaluate,
)
