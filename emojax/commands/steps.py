"""The steps of the main job, from built objects to results in a run folder, with what is printed of
them.

`run`, `dissect`, `sweep` and `demo` are made of these: check, probe, dissect, label. The study that
may follow is in `commands/study.py`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from emojax import store
from emojax.commands.base import Dissecting, Probing, Studying
from emojax.commands.console import console, progress, say, warn, working
from emojax.commands.opening import StudyInputs
from emojax.data.classes import positions
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet, load_concepts
from emojax.data.draw import Draw
from emojax.data.image_set import ImageSet
from emojax.dissection.agreement import agreement
from emojax.dissection.dissect import dissect as dissect_record
from emojax.dissection.dissect import embed_concepts
from emojax.dissection.encoder_check import ZeroShot, zero_shot
from emojax.dissection.encoder_check import summary as encoder_summary
from emojax.dissection.find import Profiles, profiles
from emojax.dissection.labels import Dissection
from emojax.dissection.options import wpmi_options
from emojax.dissection.table import LayerSummary
from emojax.distributed.processes import is_main_process
from emojax.editing.study_checks import check_study
from emojax.errors import InputError
from emojax.models.classifier import Classifier, Editable, outgoing_weights
from emojax.models.tapped import TappedNetwork
from emojax.ops.similarity import rank_reorder_size
from emojax.probing.maps import Maps, activation_maps
from emojax.probing.network import Network, as_network, resolve_layers
from emojax.probing.probe import probe as probe_network
from emojax.probing.record import ProbeRecord
from emojax.report.explorer import trust_order
from emojax.report.write import write_dissection
from emojax.settings import Dissect
from emojax.training.evaluate import class_order

_READING_BOUND = 0.1  # share of the time waited for images above which reading is the bottleneck
_SAMPLE = 1000  # images that are probed in both precisions, to compare the labels


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
    options = wpmi_options(scoring.similarity, scoring.top_k, scoring.a, scoring.lam)
    if options is not None and options.top_k > len(images):
        raise InputError(
            f"{scoring.similarity} looks at the top {options.top_k} images of each unit, and "
            f"{images.name} has {len(images)}; give --dissect.top-k {len(images)} or less"
        )
    clip.tokenize(concepts.concepts)
    if scoring.search is not None:
        clip.tokenize(load_concepts(scoring.search).concepts)
    if images.labels is not None:
        concepts.class_mask(images.classes)
    resolve_layers(layers_to_probe(settings, model), list(units_of(model, images)))


def check_study_inputs(settings: Studying, inputs: StudyInputs) -> Editable:
    """Refuses before the probe what labelling and editing would refuse after it.

    Returns the network as one that can be edited.
    """
    check(settings, inputs.model, inputs.clip, inputs.concepts, inputs.images)
    if isinstance(inputs.model, Network):
        raise InputError(
            "edits are made to networks of files, and to a factory's that take gains and have a "
            "--target.key (docs/networks.md); `emojax dissect` labels any"
        )
    check_study(
        inputs.model,
        settings.edit,
        inputs.images,
        inputs.tests,
        probed=settings.probe.layers,
        protocol=settings.evaluate.protocol,
        concepts=inputs.concepts,
    )
    assert isinstance(inputs.model, Editable)  # others were refused
    return inputs.model


def probe(
    settings: Probing,
    run: store.Run,
    model: Classifier | Network,
    images: ImageSet,
    clip: ClipEncoder,
) -> ProbeRecord:
    """The record for these settings, from the cache when its content key is there."""
    options = settings.probe
    network = as_network(model, taps=options.taps, antialias=options.antialias)
    start = time.perf_counter()
    with run.timed("probe"), progress("probe") as bar:
        record = probe_network(
            network,
            images,
            clip,
            **_what_to_probe(settings, model, images),
            precision=options.precision,
            memory=None if options.memory is None else options.memory * 1e9,
            cache=settings.cache / "probes",
            save_every=options.save_every,
            progress=bar,
        )
    keys = {"target": network.key, "images": images.key, "clip": clip.key, "record": record.key}
    run.inputs |= {name: key for name, key in keys.items() if key is not None}
    _say_probed(record, time.perf_counter() - start)
    return record


def _what_to_probe(
    settings: Probing, model: Classifier | Network, images: ImageSet
) -> dict[str, Any]:
    """What of the settings shapes a record, but its precision."""
    options = settings.probe
    scores = settings.dissect if isinstance(settings, Dissecting) else Dissect()
    # The record must hold what the similarity function will ask of it.
    top_k = max(options.top_k, scores.top_k or 0)
    if scores.similarity == "rank_reorder":
        top_k = max(top_k, rank_reorder_size(len(images)))
    return {
        "layers": layers_to_probe(settings, model),
        "pool": options.pool,
        "tokens": options.tokens,
        "top_k": min(top_k, len(images)),
        "batch": options.batch,
        "tile": options.tile,
        "keep_activations": (
            options.keep_activations or scores.similarity == "cos_similarity_cubed"
        ),
    }


def compare_precisions(
    settings: Dissecting,
    run: store.Run,
    model: Classifier | Network,
    images: ImageSet,
    concepts: ConceptSet,
    clip: ClipEncoder,
) -> dict[str, Any]:
    """How many labels of a sample of the images the precision changes, for the summary."""
    options = settings.probe
    sample = images.drawn(Draw(_SAMPLE))
    network = as_network(model, taps=options.taps, antialias=options.antialias)
    what = _what_to_probe(settings, model, sample)
    asked: dict[str, Any] = {**scoring(settings, run, concepts, clip), "null_sets": 0}
    with run.timed("compare precisions"):
        exact, other = (
            dissect_record(
                probe_network(network, sample, clip, **what, precision=precision), concepts, **asked
            )
            for precision in ("exact", options.precision)
        )
    agreed = agreement(exact, other)
    clear = ""
    if agreed.clear_share is not None:
        clear = (
            f", and in {agreed.clear_share:.1%} of {agreed.clear} that hold on either half of it"
        )
    say(
        f"precision {options.precision}: labels of a sample of {agreed.images} images are those of "
        f"exact in {agreed.share:.1%} of {agreed.units} units{clear}"
    )
    return {"precision": {"tier": options.precision, **agreed.as_json()}}


def _say_probed(record: ProbeRecord, seconds: float) -> None:
    units = sum(record.layers.values())
    if record.done_before == record.images:
        key = (record.key or "")[:12]
        say(f"probe: reusing the record of {record.images} images, {units} units, {key}")
        return
    resumed = f", resumed after {record.done_before}" if record.done_before else ""
    rate = (record.images - record.done_before) / seconds
    devices = jax.device_count()
    each = f", {rate / devices:.1f} a device" if devices > 1 else ""
    say(
        f"probe: {record.images} images{resumed}, {len(record.layers)} layers, {units} units "
        f"in {seconds:.1f} s ({rate:.1f} images/s{each}, compilation included)"
    )
    if record.waited is not None:
        bound = "reading" if record.waited >= _READING_BOUND else "device"
        say(f"probe: {bound}-bound, {record.waited:.0%} of the time waited for images to be read")


def scoring(
    settings: Dissecting, run: store.Run, concepts: ConceptSet, clip: ClipEncoder
) -> dict[str, Any]:
    """What the settings ask of `emojax.dissect` beside record and concepts."""
    options = settings.dissect
    hyperparameters: dict[str, Any] = {"top_k": options.top_k, "a": options.a, "lam": options.lam}
    # Refuses what is no setting of the function.
    if wpmi_options(options.similarity, **hyperparameters) is not None:
        hyperparameters["prior"] = options.prior
    with run.timed("embed concepts"), working("embed concepts"):
        texts = embed_concepts(clip, concepts, settings.cache)
    emotions = concepts.emotions and [list(names) for names in concepts.emotions]
    run.inputs["concepts"] = store.content_key([list(concepts.concepts), emotions])
    return hyperparameters | {
        "similarity": options.similarity,
        "clip": clip,
        "text_embeddings": texts,
        "null_sets": options.null_sets,
    }


def label(
    settings: Dissecting,
    run: store.Run,
    record: ProbeRecord,
    concepts: ConceptSet,
    clip: ClipEncoder,
    model: Classifier | Network | None,
    images: ImageSet | None = None,
) -> tuple[Dissection, list[LayerSummary], dict[str, Any]]:
    """From a record to labels, Table 1 and the summary, written and printed.

    With the images that were probed, the page can show where in them units are active, and the
    summary says what the probe's precision changed.
    """
    asked = scoring(settings, run, concepts, clip)
    with run.timed("dissect"), working("dissect"):
        dissection = dissect_record(record, concepts, **asked)
    network, outgoing = _layers_and_outgoing(model, record)
    tau = settings.dissect.tau
    abstain = settings.dissect.abstain
    check = zero_shot(record, clip)
    maps = None
    if model is not None and images is not None:
        maps = _maps(settings, run, dissection, model, images)
    table1, summary = write_dissection(
        run.folder,
        dissection,
        tau,
        network,
        outgoing,
        abstain=abstain,
        encoder=encoder_summary(clip, check),
        profiles=_profiles(settings, record, concepts, clip),
        maps=maps,
    )
    _say_encoder(clip, check)
    print_table1(table1, tau)
    if dissection.undescribed is not None:
        say(f"Table 1 has no accuracies: {dissection.undescribed}")
    _say_trust(dissection, abstain=abstain)
    if settings.probe.precision != "exact" and model is not None and images is not None:
        summary |= compare_precisions(settings, run, model, images, concepts, clip)
        store.write_json(run.folder / "summary.json", summary)
    return dissection, table1, summary


def _layers_and_outgoing(
    model: Classifier | Network | None, record: ProbeRecord
) -> tuple[dict[str, int] | None, np.ndarray | None]:
    """Units of all layers, the classes last, and the last hidden layer's weights to the classes.

    The classes of the weights stand in the record's order. Either is None where it is not known.
    """
    if model is None or isinstance(model, Network):
        return None, None
    units = dict(model.config.units())
    weights = outgoing_weights(model)
    places = positions(record.classes, class_order(model, record.classes))
    if weights is None or places is None or len(places) != model.config.classes:
        return units, None
    if isinstance(model, TappedNetwork):
        units["logits"] = model.config.classes
    return units, np.asarray(weights)[:, places]


def _maps(
    settings: Dissecting,
    run: store.Run,
    dissection: Dissection,
    model: Classifier | Network,
    images: ImageSet,
) -> Maps | None:
    """Where in their top images the most trusted units are active; the main process knows it."""
    if not is_main_process():
        return None
    options = settings.probe
    network = as_network(model, taps=options.taps, antialias=options.antialias)
    order = trust_order(dissection.columns())
    with run.timed("activation maps"), progress("activation maps") as bar:
        return activation_maps(network, images, dissection.record, order, progress=bar)


def _profiles(
    settings: Dissecting, record: ProbeRecord, concepts: ConceptSet, clip: ClipEncoder
) -> Profiles:
    """Correlations of the units with the concepts, and with further texts of the settings."""
    file = settings.dissect.search
    further = () if file is None else load_concepts(file).concepts
    texts = ConceptSet(tuple(dict.fromkeys((*concepts.concepts, *further))))
    return profiles(record, texts.concepts, embed_concepts(clip, texts, settings.cache))


def open_record(path: Path) -> ProbeRecord:
    """A record that the settings name."""
    from emojax.probing import record

    return record.load(path)


# What is printed


def _say_encoder(clip: ClipEncoder, check: ZeroShot | None) -> None:
    """What the encoder sees of the classes, and a warning where that is next to nothing."""
    if check is None:
        return
    sentence = (
        f"{clip.name} puts {check.accuracy:.0%} of {check.images} images into the right class by "
        f"the class names alone (chance {check.chance:.0%})"
    )
    if check.weak:
        warn(
            f"{sentence}: it hardly sees what tells them apart, so labels may be of anything; give "
            "--clip.path a CLIP that knows such images"
        )
    else:
        say(f"clip: {sentence}")


def _say_trust(dissection: Dissection, *, abstain: bool) -> None:
    """How far the labels can be trusted, and a warning where few of them stand for most units."""
    units = len(dissection.labels)
    if dissection.undefined:
        say(
            f"labels: {dissection.similarity} is undefined for {dissection.undefined:,} of "
            f"{dissection.scores.size:,} pairs of unit and concept, which win no label"
        )
    confidence = dissection.confidence
    said = []
    if confidence is not None and confidence.q_value is not None:
        said.append(f"{(confidence.q_value <= 0.05).sum()} above chance (q ≤ 0.05)")
    if confidence is not None and (holds := confidence.holds(dissection.labels)) is not None:
        said.append(f"{holds.sum()} the same on either half of the images")
    elif confidence is not None and confidence.q_value is not None:
        images = dissection.record.images
        said.append(
            f"none compared on halves of the {images} images, which are shorter than the lists of "
            f"--dissect.top-k: give {images // 2} or less"
        )
    if abstain and dissection.trusted is not None:
        said.append(f"{dissection.trusted.sum()} labelled, the others have no label")
    if said:
        say(f"labels: of {units} units {'; '.join(said)}")
    constant = int(dissection.record.constant.sum())
    if constant:
        say(f"warning: {constant} units are the same for all images: they respond to nothing")
    hubs = dissection.hubs
    if hubs.crowded and len(dissection.concepts) > 2:
        label = dissection.concepts.concepts[hubs.concept]
        say(
            f"warning: {hubs.share:.0%} of the units are labelled {label!r} "
            f"(effective number of labels {hubs.effective:.1f} of {len(dissection.concepts)})"
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_table1(rows: Sequence[LayerSummary], tau: float) -> None:
    """The paper's Table 1."""
    title = f"Units above tau = {tau:g}, and how well labels describe their top images"
    caption = (
        "acc.: share of a unit's top images whose class its label speaks for, over all units, "
        "those above tau and the others; chance: for images taken at random; adjusted: "
        "(acc. − chance) / (1 − chance)"
    )
    table = Table("layer", title=title, title_justify="left")
    table.caption, table.caption_justify = caption, "left"
    columns = ("units\nabove", "units\nnot", "share\nabove", "acc.\nall", "acc.\nabove")
    for column in (*columns, "acc.\nnot", "chance", "adjusted"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = (str(row.interpretable), str(row.not_interpretable))
        table.add_row(row.layer, *counts, *map(_number, row.shares))
    console.print(table)
