"""`emojax shortcuts`: concepts whose units drive a class on the probe set and errors elsewhere."""

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from emojax import settings as config
from emojax.commands.base import Command, Dissecting, out_folder
from emojax.section import Seed, UserPath

if TYPE_CHECKING:
    import numpy as np

    from emojax.commands.opening import StudyInputs
    from emojax.data.image_set import Images
    from emojax.editing.activations import PreBiasActivations
    from emojax.editing.shortcuts import Side, Suspect
    from emojax.models.classifier import Editable
    from emojax.report.shortcuts import Looked

_SHOWN = 10  # suspects that are printed


class ShortcutsSettings(Dissecting):
    """Settings of the search."""

    permutations: int = Field(
        default=999, ge=19, description="that falls of association and errors are compared with"
    )
    seed: Seed = Field(default=0, description="of the permutations")
    report: config.Report = config.Report()
    out: UserPath = out_folder("shortcuts")


def shortcuts(settings: ShortcutsSettings) -> None:
    """Labels the units, ranks the concepts; writes shortcuts.csv and shortcuts.html."""
    from emojax import store
    from emojax.commands import opening, steps
    from emojax.commands.console import progress
    from emojax.dissection.dissect import embed_concepts
    from emojax.editing.activations import pre_bias_activations
    from emojax.editing.shortcuts import LEVEL, Suspect, find_shortcuts, last_layer_of
    from emojax.report.shortcuts import FILE, Looked

    inputs = opening.open_study(settings)
    model, layer = _checked(settings, inputs)
    clip = inputs.clip
    with opening.open_run(settings, "shortcuts") as run:
        warnings = opening.note_provenance(
            run, opening.name_of(settings.target), inputs.tests, inputs.class_names
        )
        steps.check(settings, model, clip, inputs.concepts, inputs.images)
        record = steps.probe(settings, run, model, inputs.images, clip)
        dissection, _, summary = steps.label(settings, run, record, inputs.concepts, clip, model)
        with run.timed("shortcuts"), progress("layer activations") as bar:
            read = [
                pre_bias_activations(
                    model, images, layer, cache=settings.cache / "edits", progress=bar
                )
                for images in (inputs.images, *inputs.tests)
            ]
            texts = embed_concepts(clip, inputs.concepts, settings.cache)
            probe, held_out = _sides(inputs, record.embeddings, texts, read)
            units = {name: dissection.units(name)[layer] for name in inputs.concepts.concepts}
            suspects = find_shortcuts(
                probe,
                held_out,
                last_layer_of(read[0]).weight,
                units,
                permutations=settings.permutations,
                seed=settings.seed,
            )
        classes = read[0].classes
        rows = [one._replace(label=classes[one.label]) for one in suspects]
        store.write_csv(run.folder / "shortcuts.csv", list(Suspect._fields), rows)
        sure = [one._asdict() for one in rows if one.q_value <= LEVEL]
        store.write_json(run.folder / "summary.json", summary | {"layer": layer, "shortcuts": sure})
        looked = Looked(
            layer,
            classes,
            units,
            record.by_layer(dissection.scores)[layer],
            last_layer_of(read[0]).weight,
            probe,
            held_out,
            _shown(settings, inputs),
        )
        store.write_text(run.folder / FILE, _page(settings, suspects, looked))
    _print(settings, suspects, classes, layer)
    opening.end_with(settings.out, warnings)


def _shown(
    settings: ShortcutsSettings, inputs: "StudyInputs"
) -> "tuple[list[Images], list[Images]] | None":
    """The images that the page may show; None where it shows none."""
    wanted = settings.report.images
    if wanted == "none" or (wanted == "auto" and settings.data.kind != "faces"):
        return None
    return [inputs.images.images], [test.images for test in inputs.tests]


def _page(settings: ShortcutsSettings, suspects: "Sequence[Suspect]", looked: "Looked") -> str:
    from emojax.report.shortcuts import render
    from emojax.store import versions

    return render(
        suspects,
        looked,
        name=settings.out.resolve().name,
        version=versions().get("emojax", "of an unknown version"),
        command=lambda concept: erasing(settings, concept),
        people=settings.data.kind != "faces",
        size=settings.report.size,
    )


def erasing(settings: ShortcutsSettings, concept: str) -> list[str]:
    """The line that erases a concept from this network and tests that, on the same inputs.

    Each part of it is a flag with its values, quoted for a shell.
    """
    inputs = Dissecting(**{name: getattr(settings, name) for name in Dissecting.model_fields})
    name = re.sub(r"\W+", "-", concept.lower())[:40].strip("-")
    out = settings.out.with_name(f"{settings.out.name}-without-{name}")
    given = config.flags_of(inputs.model_copy(update={"out": out, "overwrite": False}))
    parts = [["emojax", "sweep"]]
    for argument in (*given, "--edit.suppress", concept, "--edit.method", "erase"):
        if argument.startswith("--"):
            parts.append([])
        parts[-1].append(argument)
    return [shlex.join(part) for part in parts]


def _checked(settings: ShortcutsSettings, inputs: "StudyInputs") -> "tuple[Editable, str]":
    """The network and its last hidden layer, after refusing what the search cannot take."""
    from emojax.commands import steps
    from emojax.editing.shortcuts import LEVEL, least_permutations
    from emojax.errors import InputError
    from emojax.models.classifier import Editable, last_hidden
    from emojax.probing.network import resolve_layers
    from emojax.training.evaluate import labelled

    model = inputs.model
    if not isinstance(model, Editable):
        raise InputError(
            f"shortcuts are searched in networks that can be edited, not in a "
            f"{type(model).__name__}: a VGGNet, a CompactNet or those of --target.path"
        )
    layer = last_hidden(model)
    if layer is None:
        raise InputError("no hidden layer of this network feeds its logits")
    for images in (inputs.images, *inputs.tests):
        labelled(images, model)
    probed = resolve_layers(steps.layers_to_probe(settings, model), list(model.config.units()))
    if layer not in probed:
        raise InputError(f"--probe.layers leaves out {layer}, whose units are looked at; add it")
    least = least_permutations(len(inputs.images.classes))
    if settings.permutations < least:
        raise InputError(
            f"--permutations {settings.permutations} cannot reach q ≤ {LEVEL:g} over "
            f"{len(inputs.images.classes)} classes; give at least {least}"
        )
    return model, layer


def _sides(
    inputs: "StudyInputs",
    embeddings: "np.ndarray",
    texts: "np.ndarray",
    read: "Sequence[PreBiasActivations]",
) -> "tuple[Side, Side]":
    """The probe set and all test splits, from CLIP's embeddings and the layer's activations."""
    import numpy as np

    from emojax.editing.activations import pool_activations
    from emojax.editing.shortcuts import side_of

    embedded = [inputs.clip.embed_images(test.images) for test in inputs.tests]
    held_out = side_of(pool_activations(*read[1:]), np.concatenate(embedded), texts)
    return side_of(read[0], embeddings, texts), held_out


def _print(
    settings: ShortcutsSettings,
    suspects: "Sequence[Suspect]",
    classes: Sequence[str],
    layer: str,
) -> None:
    """The first suspects, and what to do about them."""
    from rich.table import Table

    from emojax.commands.console import console, say
    from emojax.editing.shortcuts import LEVEL, UNFINDABLE

    title = f"Concepts whose units of {layer} push a class they go less with on held-out images"
    table = Table("concept", "class", title=title, title_justify="left")
    for column in ("units", "push", "goes with", "held out", "errors", "q"):
        table.add_column(column, justify="right")
    for one in suspects[:_SHOWN]:
        numbers = (one.drive, one.association, one.held_out_association, one.errors)
        cells = (f"{value:+.2f}" for value in numbers)
        table.add_row(one.concept, classes[one.label], str(one.units), *cells, f"{one.q_value:.2g}")
    console.print(table)
    sure = [one for one in suspects if one.q_value <= LEVEL]
    if not sure:
        say(f"no shortcut found (no q ≤ {LEVEL:g}). {UNFINDABLE}")
        return
    say(f"found (q ≤ {LEVEL:g}): {len(sure)}. To take out the first, and test that:")
    say(f"  {' '.join(erasing(settings, sure[0].concept))}")


COMMAND = Command(
    "shortcuts",
    "concepts whose units drive a class on the probe set and its errors on the test splits",
    ShortcutsSettings,
    shortcuts,
    short={"--images": "--report.images"},
)
