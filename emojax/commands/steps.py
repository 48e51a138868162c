"""The steps of the main job, from built objects to results in a run folder, with what is printed of
them.

`run`, `dissect`, `sweep` and `demo` are made of these: check, probe, dissect, label, study.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from emojax import store
from emojax.commands.base import Dissecting, Probing, Studying
from emojax.commands.console import console, progress, say
from emojax.commands.study import study_edits
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection.dissect import dissect as dissect_record
from emojax.dissection.dissect import embed_concepts
from emojax.dissection.labels import Dissection
from emojax.dissection.options import wpmi_options
from emojax.dissection.table import LayerSummary, interpretability
from emojax.editing.study import check_study
from emojax.errors import InputError
from emojax.models.classifier import Classifier, Editable
from emojax.models.tapped import TappedNetwork
from emojax.models.vgg import VggNet
from emojax.ops.similarity import rank_reorder_size
from emojax.probing.network import Network, as_network, resolve_layers
from emojax.probing.probe import probe as probe_network
from emojax.probing.record import ProbeRecord
from emojax.report.write import write_dissection
from emojax.settings import Dissect


def units_of(model: Classifier | Network, images: ImageSet) -> dict[str, int]:
    """Units of every layer of the network under study, in order."""
    if not isinstance(model, Network):
        return model.config.units()
    shapes = model.tap_shapes(images.images.shape[1:])
    return {name: shape[-1] for name, shape in shapes.items()}


def layers_to_probe(settings: Probing, model: Classifier | Network) -> Sequence[str]:
    """Names or patterns of the layers that the settings ask for; without any, the network's own."""
    own = ("*",) if isinstance(model, Network) else model.config.probed()
    return settings.probe.layers or own


def check(
    settings: Dissecting,
    model: Classifier | Network,
    clip: ClipEncoder,
    concepts: ConceptSet,
    images: ImageSet,
) -> None:
    """Refuses before the probe what the labelling would refuse after it."""
    scoring = settings.dissect
    wpmi_options(scoring.similarity, scoring.top_k, scoring.a, scoring.lam)
    clip.tokenize(concepts.concepts)
    if images.labels is not None:
        concepts.class_mask(images.classes)
    resolve_layers(layers_to_probe(settings, model), list(units_of(model, images)))


def check_edits(
    settings: Studying, model: Classifier | Network, images: ImageSet, tests: Sequence[ImageSet]
) -> Editable:
    """Refuses before the probe what the edit would refuse after it; returns what can be edited."""
    if isinstance(model, Network):
        raise InputError(
            "edits are made to networks of files; `emojax dissect` labels those of a factory"
        )
    check_study(
        model,
        settings.edit,
        images,
        tests,
        probed=settings.probe.layers,
        protocol=settings.evaluate.protocol,
    )
    assert isinstance(model, VggNet | TappedNetwork)  # others were refused
    return model


def probe(
    settings: Probing,
    run: store.Run,
    model: Classifier | Network,
    images: ImageSet,
    clip: ClipEncoder,
) -> ProbeRecord:
    """The record for these settings, from the cache when its content key is there."""
    options = settings.probe
    scores = settings.dissect if isinstance(settings, Dissecting) else Dissect()
    # The record must hold what the similarity function will ask of it.
    top_k = max(options.top_k, scores.top_k or 0)
    if scores.similarity == "rank_reorder":
        top_k = max(top_k, rank_reorder_size(len(images)))
    network = as_network(model, taps=options.taps)
    start = time.perf_counter()
    with run.timed("probe"), progress("probe") as bar:
        record = probe_network(
            network,
            images,
            clip,
            layers=layers_to_probe(settings, model),
            pool=options.pool,
            top_k=min(top_k, len(images)),
            batch=options.batch,
            tile=options.tile,
            keep_activations=(
                options.keep_activations or scores.similarity == "cos_similarity_cubed"
            ),
            memory=None if options.memory is None else options.memory * 1e9,
            cache=settings.cache / "probes",
            save_every=options.save_every,
            progress=bar,
        )
    keys = {"target": network.key, "images": images.key, "clip": clip.key, "record": record.key}
    run.inputs |= {name: key for name, key in keys.items() if key is not None}
    _say_probed(record, time.perf_counter() - start)
    return record


def _say_probed(record: ProbeRecord, seconds: float) -> None:
    units = sum(record.layers.values())
    if record.done_before == record.images:
        key = (record.key or "")[:12]
        say(f"probe: reusing the record of {record.images} images, {units} units, {key}")
        return
    resumed = f", resumed after {record.done_before}" if record.done_before else ""
    rate = (record.images - record.done_before) / seconds
    say(
        f"probe: {record.images} images{resumed}, {len(record.layers)} layers, {units} units "
        f"in {seconds:.1f} s ({rate:.1f} images/s, compilation included)"
    )


def dissect(
    settings: Dissecting,
    run: store.Run,
    record: ProbeRecord,
    concepts: ConceptSet,
    clip: ClipEncoder,
) -> Dissection:
    """Scores and labels of all units."""
    options = settings.dissect
    wpmi_options(
        options.similarity, options.top_k, options.a, options.lam
    )  # refuses what is no setting of it
    with run.timed("embed concepts"):
        texts = embed_concepts(clip, concepts, settings.cache)
    with run.timed("dissect"):
        dissection = dissect_record(
            record,
            concepts,
            similarity=options.similarity,
            clip=clip,
            text_embeddings=texts,
            null_sets=options.null_sets,
            top_k=options.top_k,
            a=options.a,
            lam=options.lam,
        )
    emotions = concepts.emotions and [list(names) for names in concepts.emotions]
    run.inputs["concepts"] = store.content_key([list(concepts.concepts), emotions])
    return dissection


def label(
    settings: Dissecting,
    run: store.Run,
    record: ProbeRecord,
    concepts: ConceptSet,
    clip: ClipEncoder,
    model: Classifier | Network | None,
) -> tuple[Dissection, list[LayerSummary], dict[str, Any]]:
    """From a record to labels, Table 1 and the summary, written and printed."""
    dissection = dissect(settings, run, record, concepts, clip)
    network = None if model is None or isinstance(model, Network) else model.config.units()
    outgoing = None
    if isinstance(model, VggNet):
        logits_layer: Any = model.lin3  # pyright: ignore[reportAttributeAccessIssue] - set by name
        outgoing = np.asarray(logits_layer.kernel[...])
    tau = settings.dissect.tau
    table1, summary = write_dissection(run.folder, dissection, tau, network, outgoing)
    print_table1(table1, tau)
    if dissection.confidence:
        say(_confidence_line(summary["confidence"], sum(record.layers.values())))
    return dissection, table1, summary


def chain(
    settings: Studying,
    run: store.Run,
    model: Classifier | Network,
    clip: ClipEncoder,
    concepts: ConceptSet,
    images: ImageSet,
    tests: Sequence[ImageSet],
) -> tuple[ProbeRecord, dict[str, Any]]:
    """The main job: probe, labels, Table 1, the edit and its evidence; all of it written.

    Returns the record and the summary that was written.
    """
    check(settings, model, clip, concepts, images)
    editable = check_edits(settings, model, images, tests)
    record = probe(settings, run, model, images, clip)
    dissection, table1, summary = label(settings, run, record, concepts, clip, model)
    summary["edit"] = study_edits(settings, run, editable, dissection, table1, images, tests)
    store.write_json(run.folder / "summary.json", summary)
    return record, summary


def sweep(
    settings: Studying,
    run: store.Run,
    model: Classifier | Network,
    clip: ClipEncoder,
    concepts: ConceptSet,
    images: ImageSet,
    tests: Sequence[ImageSet],
) -> dict[str, Any]:
    """Probe, labels and the edit, without the labels' files; returns the summary of the edit."""
    check(settings, model, clip, concepts, images)
    editable = check_edits(settings, model, images, tests)
    record = probe(settings, run, model, images, clip)
    dissection = dissect(settings, run, record, concepts, clip)
    table1 = interpretability(dissection, settings.dissect.tau)
    edit = study_edits(settings, run, editable, dissection, table1, images, tests)
    store.write_json(run.folder / "summary.json", {"edit": edit})
    return edit


def open_record(path: Path) -> ProbeRecord:
    """A record that the settings name."""
    from emojax.probing import record

    return record.load(path)


# What is printed


def _confidence_line(summary: dict[str, Any], units: int) -> str:
    line = f"labels: {summary['significant_at_q05']} of {units} units above chance (q ≤ 0.05)"
    if summary["halves_agree"] is not None:
        line += f"; {summary['halves_agree']} keep their label on either half of the images"
    return line


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_table1(rows: Sequence[LayerSummary], tau: float) -> None:
    """The paper's Table 1."""
    title = f"Units above tau = {tau:g}, and how well labels describe their top images"
    table = Table("layer", title=title, title_justify="left")
    for column in ("above", "not", "acc.", "above", "not", "share", "chance", "adjusted"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (
            row.overall_acc,
            row.interp_acc,
            row.uninterp_acc,
            row.share,
            row.chance_overall,
            row.adjusted_overall,
        )
        counts = (str(row.interpretable), str(row.not_interpretable))
        table.add_row(row.layer, *counts, *map(_number, numbers))
    console.print(table)
