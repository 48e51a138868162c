"""What each command does: open the inputs, call the engine, write the run folder, say what was found.

`chain` is the main job from built objects to results; `run`, `dissect`, `sweep` and `demo` are parts of it or feed it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.table import Table

from emojax import config, store, verbs_audit, verbs_demo, verbs_edit, verbs_report, verbs_train
from emojax.console import console, progress, say, say_written, warn
from emojax.data import concepts as concept_files
from emojax.data import demo as demo_data
from emojax.data import seen
from emojax.data.concepts import ConceptSet, load_concepts
from emojax.data.loader import ImageSet, open_split
from emojax.data.weights import Classifier, ClipEncoder, load_clip, load_network
from emojax.engine import concepts as concept_engine
from emojax.engine import dissect as dissect_engine
from emojax.engine import evaluate as evaluate_engine
from emojax.engine import probe as probe_engine
from emojax.engine import record as records
from emojax.engine.dissect import Dissection, LayerSummary
from emojax.engine.evaluate import Evaluation
from emojax.engine.network import as_network, resolve_layers
from emojax.engine.record import ProbeRecord
from emojax.errors import InputError
from emojax.models.compact import Editable
from emojax.ops.similarity import rank_reorder_size
from emojax.report.write import write_dissection

TESTS = ("public_test", "private_test")


def _need(value: Any, flag: str, what: str) -> Any:
    if value is None:
        raise InputError(f"{flag} is needed: {what}")
    return value


def _dump(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")


# Opening what the settings name


def _open(data: config.Data, split: str) -> ImageSet:
    return open_split(data.path, split, kind=data.kind, size=data.size, limit=data.limit, exclude=data.exclude)


def _open_tests(data: config.Data) -> list[ImageSet]:
    return [_open(data, split) for split in data.test_splits]


def _open_target(target: config.Target) -> Classifier:
    what = "VGGNet, Deep-Emotion or CompactNet weights, .safetensors or a PyTorch checkpoint"
    return load_network(_need(target.weights, "--target.weights", what))


def _seen(settings: Any, run: store.Run, tests: Sequence[ImageSet]) -> list[str]:
    """Puts into the manifest what the network has seen; returns warnings of test splits among that, to end with."""
    known = seen.read(settings.target.weights)
    run.target = {"seen": None if known is None else [each._asdict() for each in known]}
    return seen.warnings(known, settings.target.weights.name, tests)


def _end(out: Path, warnings: Sequence[str]) -> None:
    """The last lines of a verb that tests a network."""
    say_written(out)
    for line in warnings:
        warn(line)


def _open_clip(clip: config.Clip) -> ClipEncoder:
    path = _need(clip.path, "--clip.path", "a Hugging Face CLIP folder or hub name, e.g. openai/clip-vit-base-patch16")
    return load_clip(path, dtype=clip.dtype)


# The steps of the main job


def _hyperparameters(options: config.Dissect) -> dict[str, Any]:
    """Those of the similarity function that were set.

    Raises:
      InputError: one was set that the function does not have.
    """
    chosen = {name: getattr(options, name) for name in ("top_k", "a", "lam") if getattr(options, name) is not None}
    if chosen and options.similarity not in ("wpmi", "soft_wpmi"):
        raise InputError(f"--dissect.{next(iter(chosen)).replace('_', '-')} is not a setting of {options.similarity}")
    return chosen


def _check(
    settings: Any, model: Editable, clip: ClipEncoder, concepts: ConceptSet, images: ImageSet, tests: Sequence[ImageSet]
) -> None:
    """Refuses before the probe what would be refused after it."""
    _hyperparameters(settings.dissect)
    clip.tokenize(concepts.concepts)
    if images.labels is not None:
        concepts.class_mask(images.classes)
    resolve_layers(settings.probe.layers or model.config.probed(), list(model.config.units()))
    if tests:
        verbs_edit.check(settings, model, images, tests)


def _probe(
    settings: Any, run: store.Run, model: Editable, images: ImageSet, clip: ClipEncoder, cache: Path | None
) -> ProbeRecord:
    """The record for these settings, read from the cache when its content key is there."""
    options, scores = settings.probe, getattr(settings, "dissect", config.Dissect())  # the probe verb has no such section
    top_k, keep = options.top_k, options.keep_activations or scores.similarity == "cos_similarity_cubed"
    if scores.similarity == "rank_reorder":
        top_k = max(top_k, rank_reorder_size(len(images)))
    top_k = min(max(top_k, scores.top_k or 0), len(images))
    network = as_network(model, taps=options.taps)
    start = time.perf_counter()
    with run.timed("probe"), progress("probe") as bar:
        record = probe_engine.probe(
            network,
            images,
            clip,
            layers=options.layers or model.config.probed(),
            pool=options.pool,
            top_k=top_k,
            batch=options.batch,
            tile=options.tile,
            keep_activations=keep,
            cache=None if cache is None else cache / "probes",
            save_every=options.save_every,
            progress=bar,
        )
    seconds, units = time.perf_counter() - start, sum(record.layers.values())
    run.inputs |= {"target": network.key, "images": images.key, "clip": clip.key, "record": record.key}
    if record.done_before == record.images:
        say(f"probe: reusing the record of {record.images} images, {units} units, {record.key[:12]}")
    else:
        resumed = f", resumed after {record.done_before}" if record.done_before else ""
        rate = (record.images - record.done_before) / seconds
        say(
            f"probe: {record.images} images{resumed}, {len(record.layers)} layers, {units} units in {seconds:.1f} s "
            f"({rate:.1f} images/s, compilation included)"
        )
    return record


def _dissect(
    settings: Any, run: store.Run, record: ProbeRecord, concepts: ConceptSet, clip: ClipEncoder, cache: Path | None
) -> Dissection:
    options, chosen = settings.dissect, _hyperparameters(settings.dissect)
    with run.timed("embed concepts"):
        texts = dissect_engine.embed_concepts(clip, concepts, cache)
    with run.timed("dissect"):
        found = dissect_engine.dissect(
            record,
            concepts,
            similarity=options.similarity,
            clip=clip,
            text_embeddings=texts,
            null_sets=options.null_sets,
            **chosen,
        )
    run.inputs["concepts"] = store.content_key(
        [list(concepts.concepts), concepts.emotions and [list(e) for e in concepts.emotions]]
    )
    return found


def _evaluate(settings: Any, run: store.Run, model: Editable, tests: Sequence[ImageSet], what: str) -> dict[str, Evaluation]:
    """Each split alone and, when there are several, all pooled."""
    options, results = settings.evaluate, {}
    with run.timed("evaluate"), progress(what) as bar:
        for images in tests:
            results[images.name] = evaluate_engine.evaluate(
                model, images, protocol=options.protocol, batch=options.batch, progress=bar
            )
    if len(results) > 1:
        results["all"] = evaluate_engine.join(*results.values())
    return results


# What is printed


def _confidence_line(summary: dict[str, Any], units: int) -> str:
    line = f"labels: {summary['significant_at_q05']} of {units} units above chance (q ≤ 0.05)"
    if summary["halves_agree"] is not None:
        line += f"; {summary['halves_agree']} keep their label on either half of the images"
    return line


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _print_table1(summary: Sequence[LayerSummary], tau: float) -> None:
    title = f"Units above tau = {tau:g}, and how well labels describe their top images"
    table = Table("layer", title=title, title_justify="left")
    for column in ("above", "not", "acc.", "above", "not", "share", "chance", "adjusted"):
        table.add_column(column, justify="right")
    for row in summary:
        numbers = (row.overall_acc, row.interp_acc, row.uninterp_acc, row.share, row.chance_overall, row.adjusted_overall)
        table.add_row(row.layer, str(row.interpretable), str(row.not_interpretable), *map(_number, numbers))
    console.print(table)


def _print_evaluations(results: dict[str, Evaluation]) -> None:
    table = Table("split", *("images", "top-1", "top-2", "macro recall", "NLL"))
    for name, result in results.items():
        s = result.summary()
        table.add_row(
            name, str(s["images"]), f"{s['top1']:.3%}", f"{s['top2']:.3%}", f"{s['macro_recall']:.3%}", f"{s['nll']:.4f}"
        )
    console.print(table)


# The verbs


def train(settings: Any) -> None:
    """Trains a VGGNet on labelled images, or a small CLIP on rendered faces."""
    verbs_train.train(settings, _open)
    say_written(settings.out)


def prepare(settings: Any) -> None:
    """Builds FER2013 from the csv or the image folder."""
    source = Path(_need(settings.source, "--source", "fer2013.csv or the folder with train/ and test/")).expanduser()
    if not source.exists():
        raise InputError(f"no FER2013 at {str(source)!r}; pass --source fer2013.csv or the folder with train/ and test/")
    from emojax.data import fer2013

    with store.run_folder(settings.out, "prepare", _dump(settings)) as run:
        with run.timed("read"):
            faces = list(fer2013.read(source))
        with run.timed("write"):
            counts = fer2013.prepare(faces, run.folder)
    table = Table("class", *counts)
    for number, name in enumerate(fer2013.CLASSES):
        table.add_row(f"{number} {name}", *(str(per_class[number]) for per_class in counts.values()))
    table.add_section()
    table.add_row("images", *(str(per_class.sum()) for per_class in counts.values()))
    console.print(table)
    say_written(settings.out)


def audit(settings: Any) -> None:
    """Looks for images that should not be in a data set."""
    verbs_audit.audit(settings)
    say_written(settings.out)


def probe(settings: Any) -> None:
    """Runs the network and CLIP over the probe split and keeps the record."""
    store.check_out(settings.out)
    model, clip = _open_target(settings.target), _open_clip(settings.clip)
    images = _open(settings.data, settings.data.probe_split)
    with store.run_folder(settings.out, "probe", _dump(settings)) as run:
        record = _probe(settings, run, model, images, clip, settings.cache)
        records.save(record, run.folder / "record")
    say_written(settings.out)


def dissect(settings: Any) -> None:
    """Labels every unit of every layer, from a record, or from images by way of a cached or new one."""
    store.check_out(settings.out)
    concepts, clip = load_concepts(settings.concepts.path), _open_clip(settings.clip)
    if settings.record is not None:
        record = records.load(Path(settings.record))
        with store.run_folder(settings.out, "dissect", _dump(settings)) as run:
            run.inputs["record"] = record.key
            _label(settings, run, record, concepts, clip, settings.cache, None)
    else:
        model, images = _open_target(settings.target), _open(settings.data, settings.data.probe_split)
        with store.run_folder(settings.out, "dissect", _dump(settings)) as run:
            chain(settings, run, model, clip, concepts, images, (), settings.cache)
    say_written(settings.out)


def concepts(settings: Any) -> None:
    """Reviews a concept set, or prints the prompt for one, or imports a language model's answer."""
    if settings.prompt:
        print(concept_files.prompt(settings.classes), end="")
        return
    store.check_out(settings.out)
    source = str(settings.answer or settings.concepts.path)
    if settings.answer is not None:
        found = concept_files.parse_answer(concept_files.read_text(settings.answer), settings.classes, source)
        text = concept_files.to_csv(found)
    elif source in concept_files.BUILT_IN:
        text = concept_files.to_csv(load_concepts(source))
    else:
        text = concept_files.read_text(Path(source).expanduser())
    entries = concept_files.entries(text, source)
    clip = None if settings.clip.path is None else _open_clip(settings.clip)
    problems = concept_engine.review(entries, clip, synonym=settings.synonym)
    names = list(dict.fromkeys(entry.concept for entry in entries if entry.concept))
    if not names:
        raise InputError(f"{source}: no concept in it; write one concept a line")
    with store.run_folder(settings.out, "concepts", _dump(settings)) as run:
        if settings.answer is not None:
            store.write_text(run.folder / "concepts.csv", text)
        store.write_csv(run.folder / "problems.csv", concept_engine.Problem._fields, problems)
        if clip is not None:
            long = {p.concept for p in problems if p.problem == "too_long"}
            fitting = [name for name in names if name not in long]
            table = concept_engine.agreement(fitting, settings.classes, clip)
            rows = ([name, *row, settings.classes[row.argmax()]] for name, row in zip(fitting, table, strict=True))
            store.write_csv(run.folder / "agreement.csv", ["concept", *settings.classes, "closest"], rows)
    mapped = sum(bool(entry.emotions) for entry in entries)
    say(f"{len(names)} concepts, {mapped or 'none'} with emotions, {len(problems)} problems")
    for problem in problems:
        say(f"  line {problem.line}: {problem.problem.replace('_', ' ')} {problem.concept!r} ({problem.detail})")
    if clip is None:
        say("without --clip.path: lengths, near-synonyms and agreement with the classes were not looked at")
    say_written(settings.out)


def evaluate(settings: Any) -> None:
    """Tests a network on labelled splits."""
    store.check_out(settings.out)
    model, tests = _open_target(settings.target), _open_tests(settings.data)
    with store.run_folder(settings.out, "evaluate", _dump(settings)) as run:
        warnings = _seen(settings, run, tests)
        run.inputs |= {images.name: images.key for images in tests} | {"target": as_network(model).key}
        results = _evaluate(settings, run, model, tests, "evaluate")
        if settings.copies_of is not None:
            source = _open(settings.data, settings.copies_of)
            for images in tests:
                new = evaluate_engine.without_copies(results[images.name], images, source)
                results[f"{images.name}, no copies of {settings.copies_of}"] = new
        summaries = {name: result.summary() for name, result in results.items()}
        store.write_json(run.folder / "summary.json", {"protocol": settings.evaluate.protocol, "splits": summaries})
    _print_evaluations(results)
    _end(settings.out, warnings)


def run(settings: Any) -> None:
    """The main job: probe, dissect, Table 1, the grid of edits, the edited network evaluated."""
    store.check_out(settings.out)
    concepts = load_concepts(settings.concepts.path)
    model, clip = _open_target(settings.target), _open_clip(settings.clip)
    images, tests = _open(settings.data, settings.data.probe_split), _open_tests(settings.data)
    with store.run_folder(settings.out, "run", _dump(settings)) as folder:
        warnings = _seen(settings, folder, tests)
        chain(settings, folder, model, clip, concepts, images, tests, settings.cache)
    verbs_report.add(settings.out, settings.report, images, _open)
    _end(settings.out, warnings)


def report(settings: Any) -> None:
    """The page and the figures of a run folder."""
    verbs_report.report(settings, _open)


def compare(settings: Any) -> None:
    """Two or more runs side by side."""
    verbs_report.compare(settings)


def sweep(settings: Any) -> None:
    """The grid of edits alone, on labels from the cached or a new probe record."""
    store.check_out(settings.out)
    concepts = load_concepts(settings.concepts.path)
    model, clip = _open_target(settings.target), _open_clip(settings.clip)
    images, tests = _open(settings.data, settings.data.probe_split), _open_tests(settings.data)
    with store.run_folder(settings.out, "sweep", _dump(settings)) as folder:
        warnings = _seen(settings, folder, tests)
        _check(settings, model, clip, concepts, images, tests)
        record = _probe(settings, folder, model, images, clip, settings.cache)
        found = _dissect(settings, folder, record, concepts, clip, settings.cache)
        table1 = dissect_engine.interpretability(found, settings.dissect.tau)
        edit = verbs_edit.edit(settings, folder, model, found, images, tests, table1, settings.cache)
        store.write_json(folder.folder / "summary.json", {"edit": edit})
    _end(settings.out, warnings)


def demo(settings: Any) -> None:
    """The main job on rendered faces with the networks that ship with emojax, and its labels against the truth."""
    store.check_out(settings.out)
    chosen = verbs_demo.settings_for(settings.images)
    with store.run_folder(settings.out, "demo", _dump(settings) | {"effective": _dump(chosen)}) as run:
        with run.timed("render"):
            probed, held_out = verbs_demo.worlds(settings.images)
            images, tests = probed.image_set("faces"), [f.image_set(n) for f, n in zip(held_out, TESTS, strict=True)]
        model, clip = demo_data.load_demo()
        run.target = {"seen": [each._asdict() for each in seen.read(demo_data.ASSETS / "vgg.safetensors")]}
        record, summary = chain(chosen, run, model, clip, load_concepts("paper25"), images, tests, settings.cache)
        summary["truth"] = verbs_demo.compare_with_truth(run, model, record, list(zip(held_out, tests, strict=True)))
        store.write_json(run.folder / "summary.json", summary)
    verbs_report.add(settings.out, settings.report, images, _open)
    say_written(settings.out)
    verbs_demo.closing(summary, summary["truth"], settings.out)


def chain(
    settings: Any,
    run: store.Run,
    model: Editable,
    clip: ClipEncoder,
    concepts: ConceptSet,
    images: ImageSet,
    tests: Sequence[ImageSet],
    cache: Path | None,
) -> tuple[ProbeRecord, dict[str, Any]]:
    """From built objects to results in a run folder: probe, dissect, Table 1 and, with test sets, the edit.

    Returns the record and the summary that was written.
    """
    _check(settings, model, clip, concepts, images, tests)
    record = _probe(settings, run, model, images, clip, cache)
    found, table1, summary = _label(settings, run, record, concepts, clip, cache, model)
    if tests:
        summary["edit"] = verbs_edit.edit(settings, run, model, found, images, tests, table1, cache)
        store.write_json(run.folder / "summary.json", summary)
    return record, summary


def _label(
    settings: Any,
    run: store.Run,
    record: ProbeRecord,
    concepts: ConceptSet,
    clip: ClipEncoder,
    cache: Path | None,
    model: Classifier | None,
) -> tuple[Dissection, list[LayerSummary], dict[str, Any]]:
    """From a record to labels, Table 1 and the summary, written and printed."""
    found = _dissect(settings, run, record, concepts, clip, cache)
    shape = {} if model is None else {"network": model.config.units()}
    if isinstance(model, Editable):
        last = list(model.config.units())[-1]
        shape["outgoing"] = np.asarray(getattr(model, last).kernel[...])
    table1, summary = write_dissection(run.folder, found, settings.dissect.tau, **shape)
    _print_table1(table1, settings.dissect.tau)
    if found.confidence:
        say(_confidence_line(summary["confidence"], sum(record.layers.values())))
    return found, table1, summary
