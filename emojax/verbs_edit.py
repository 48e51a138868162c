"""The second half of a run: edits by labels, one of them chosen and confirmed, and the evidence for it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emojax import store
from emojax.console import progress, say
from emojax.data import seen
from emojax.data.loader import ImageSet
from emojax.data.weights import save_network
from emojax.engine import dissect as dissect_engine
from emojax.engine import edit as edit_engine
from emojax.engine.dissect import Dissection, LayerSummary
from emojax.engine.edit import Search, Setting
from emojax.engine.evaluate import Evaluation, evaluate, join, labelled
from emojax.engine.evidence import Subject, assess
from emojax.engine.inputs import LayerInputs, join_inputs, layer_inputs
from emojax.engine.learn import learn_gains
from emojax.engine.network import resolve_layers
from emojax.engine.sweep import Outcomes, evaluate_gains, every_threshold, try_masks, try_settings
from emojax.engine.verdict import Evidence
from emojax.errors import InputError
from emojax.models.compact import Editable
from emojax.ops.stats import benjamini_hochberg, mcnemar_exact

AUTO = "auto"
_BAND_SIZES, _BAND_DRAWS = 31, 100  # of random units, along all thresholds


def search_of(options: Any) -> Search:
    """The search that settings describe."""
    return Search(options.tau, options.factor, options.top_fraction, options.continuous, options.scope)


def check(settings: Any, model: Editable, images: ImageSet, tests: Sequence[ImageSet]) -> None:
    """Refuses before the probe what the edit would refuse after it.

    Raises:
      InputError: no edit to search, layers that are not probed, too few permutations, a bad file of gains, test sets
        without labels, or the same images where different ones are needed.
    """
    options = settings.edit
    if not isinstance(model, Editable):
        raise InputError(
            f"edits are made to a VGGNet or a CompactNet, and this is a {type(model).__name__}; "
            "`emojax dissect` labels its units"
        )
    layers, search = chosen_layers(settings, model), search_of(options)
    if options.gains is not None:
        if layers == (AUTO,) or len(layers) > 1:
            raise InputError("--edit.gains are those of one layer; name it with --edit.layers")
        edit_engine.read_gains(options.gains, model.config.units()[layers[0]])
    elif not search.settings([AUTO]):
        raise InputError("--edit.factor has only 1, which edits nothing; give another factor")
    elif settings.evaluate.protocol == "tencrop" and (len(layers) > 1 or search.fractions or search.continuous):
        raise InputError("--evaluate.protocol tencrop takes thresholds on one layer; use resize40 for other searches")
    if options.permutations and 1 / (options.permutations + 1) > options.alpha:
        least = math.ceil(1 / options.alpha) - 1
        given = f"--edit.permutations {options.permutations}"
        raise InputError(f"{given} cannot reach p ≤ {options.alpha:g}; give at least {least}")
    names = {}
    for test in tests:
        labelled(test, model.config.classes)
        if test.key in names:
            raise InputError(f"test splits {names[test.key]} and {test.name} are the same images; name different ones")
        names[test.key] = test.name
    if options.learned:
        labelled(images, model.config.classes)
        if images.key in names:
            raise InputError(f"--edit.learned fits gains on {images.name}, which is also a test split; probe another split")


def chosen_layers(settings: Any, model: Editable) -> tuple[str, ...]:
    """The layers that the settings want edited, among those that were probed; `auto` alone stays as it is.

    Raises:
      InputError: a layer was not probed.
    """
    if settings.edit.layers == (AUTO,):
        return (AUTO,)
    probed = resolve_layers(settings.probe.layers or model.config.probed(), list(model.config.units()))
    return resolve_layers(settings.edit.layers, probed)


def edit(
    settings: Any,
    run: store.Run,
    model: Editable,
    found: Dissection,
    images: ImageSet,
    tests: Sequence[ImageSet],
    table1: list[LayerSummary],
    cache: Path | None,
) -> dict[str, Any]:
    """Tries the grid, chooses a setting, tests it, and writes the tables, the evidence and the edited network."""
    options = settings.edit
    run.inputs |= {test.name: test.key for test in tests}
    layers = chosen_layers(settings, model)
    automatic = layers == (AUTO,)
    if automatic:
        layers = (dissect_engine.most_interpretable_layer(table1),)
    scores = {layer: found.layer_scores(layer) for layer in layers}
    search = search_of(options)
    if options.gains is not None:
        return _given(settings, run, model, layers, tests)
    if settings.evaluate.protocol == "tencrop":
        return _ten_crops(settings, run, model, scores, search, tests)

    kept = None if cache is None else cache / "edits"
    with run.timed("layer inputs"), progress("layer inputs") as bar:
        read = {"batch": settings.evaluate.batch, "cache": kept, "progress": bar}
        parts = {layer: [layer_inputs(model, test, layer, **read) for test in tests] for layer in layers}
        learnt_on = {layer: layer_inputs(model, images, layer, **read) for layer in layers if options.learned}
    pooled = {layer: join_inputs(*each) for layer, each in parts.items()}
    with run.timed("sweep"):
        grid = _grid(search, layers)
        outcomes = try_settings(pooled, [(one, scores[one.layer]) for one in grid], scope=options.scope, store=kept)
        _write_sweep(run.folder, grid, outcomes, next(iter(pooled.values())))
        _write_thresholds(run.folder, pooled, scores, options, kept)
    apart = options.choose_on == "first_split" and len(tests) > 1
    subject = Subject(
        scores,
        {layer: each[0] for layer, each in parts.items()} if apart else pooled,
        {layer: join_inputs(*each[1:]) for layer, each in parts.items()} if apart else None,
        {layer: learn_gains(inputs, scope=options.scope) for layer, inputs in learnt_on.items()},
    )
    slow = [layer for layer, inputs in pooled.items() if not inputs.feeds_logits]
    if slow:
        say(
            f"evidence: {', '.join(slow)} does not feed the logits, so the rest of the network runs for each of "
            f"{len(search.settings(layers)) * (options.permutations + 1) + options.masks:,} settings; "
            "fewer --edit.permutations are faster"
        )
    with run.timed("evidence"), progress("evidence", "permutations") as bar:
        wanted = {"alpha": options.alpha, "permutations": options.permutations, "masks": options.masks}
        evidence = assess([subject], search, store=kept, progress=bar, **wanted)
    store.write_json(run.folder / "evidence.json", evidence.summary())

    setting = evidence.setting
    with run.timed("bands"):
        _write_bands(run.folder, pooled[setting.layer], setting, options, kept)
    gains = setting.gains(scores[setting.layer])
    edited = edit_engine.edit(model, setting.layer, gains, scope=options.scope)
    _save(run, edited, tests[:1] if apart else tests)
    one = np.ones_like(gains)
    named = dict(zip((test.name for test in tests), parts[setting.layer], strict=True))
    result = {
        "setting": setting._asdict(),
        "layer_chosen": "most interpretable units" if automatic else "by the search" if len(layers) > 1 else "by name",
        "scope": options.scope,
        "selected_on_test": evidence.selected_on_test,
        "tested": {
            "on": [test.name for test in (tests[1:] if apart else tests)],
            "images": evidence.total,
            "gained": evidence.gained,
            "lost": evidence.lost,
        },
        "baseline": _by_split(named, one, options.scope),
        "edited": _by_split(named, gains, options.scope),
        "finding": evidence.finding,
        "p_value": evidence.p_value,
        "verdict": evidence.verdict,
    }
    _print(result, evidence)
    return result


def _save(run: store.Run, edited: Editable, chosen_on: Sequence[ImageSet]) -> None:
    """Writes the edited network; its file tells what the network had seen and what the edit was chosen on."""
    known = run.target.get("seen")
    if known is not None:
        known = [*(seen.Seen(**each) for each in known), *(seen.of(images, "chosen") for images in chosen_on)]
    save_network(edited, run.folder / "edited.safetensors", seen=known)


def _given(
    settings: Any, run: store.Run, model: Editable, layers: Sequence[str], tests: Sequence[ImageSet]
) -> dict[str, Any]:
    """Gains from a file on one layer: nothing is chosen, so all test splits are a test, and McNemar's is enough."""
    options = settings.edit
    gains = edit_engine.read_gains(options.gains, model.config.units()[layers[0]])
    edited = edit_engine.edit(model, layers[0], gains, scope=options.scope)
    _save(run, edited, ())
    results: list[dict[str, Evaluation]] = []
    with run.timed("evaluate"), progress("evaluate") as bar:
        how = {"protocol": settings.evaluate.protocol, "batch": settings.evaluate.batch, "progress": bar}
        for network in (model, edited):
            results.append({test.name: evaluate(network, test, **how) for test in tests})
    before, after = (join(*each.values()) for each in results)
    right, still = (result.predictions == result.labels for result in (before, after))
    counts = {"gained": int((still & ~right).sum()), "lost": int((right & ~still).sum()), "total": len(right)}
    evidence = Evidence(**counts, alpha=options.alpha)
    store.write_json(run.folder / "evidence.json", evidence.summary())
    say(f"evidence: {evidence.verdict}")
    return {
        "setting": {"layer": layers[0], "kind": "file", "tau": None, "factor": None},
        "scope": options.scope,
        "selected_on_test": False,
        "baseline": _summaries(results[0]),
        "edited": _summaries(results[1]),
        "finding": evidence.finding,
        "p_value": evidence.p_value,
        "verdict": evidence.verdict,
    }


def _grid(search: Search, layers: Sequence[str]) -> list[Setting]:
    """The whole grid, with factor 1, in the order of the paper's table, then the search's other kinds of gain."""
    thresholds = [Setting(name, "threshold", tau, by) for name in layers for tau in search.taus for by in search.factors]
    return thresholds + [setting for setting in search.settings(layers) if setting.kind != "threshold"]


def _write_sweep(folder: Path, grid: Sequence[Setting], found: Outcomes, inputs: LayerInputs) -> None:
    """Writes `sweep.csv`, one row per setting, over all test splits together.

    McNemar's p of each setting is adjusted over all that edit something; being of the images that settings are compared
    on, it describes the grid and decides nothing.
    """
    before = evaluate_gains(inputs, np.ones(inputs.units, np.float32))
    was, now = before.predictions == before.labels, found.predictions == before.labels
    gained, lost = (now & ~was).sum(axis=1), (was & ~now).sum(axis=1)
    p_values = np.array([mcnemar_exact(int(more), int(less)) for more, less in zip(gained, lost, strict=True)])
    adjusted, edits = np.ones(len(grid)), np.array([setting.factor != 1 or setting.kind == "continuous" for setting in grid])
    adjusted[edits] = benjamini_hochberg(jnp.asarray(p_values[edits]))
    header = ["layer", "kind", "tau", "factor", "images", "correct", "accuracy", "macro_recall", "nll", "near_ties"]
    header += ["gained", "lost", "p_value", "p_adjusted"]
    images = int(found.sizes.sum())
    numbers = zip(found.correct, found.accuracy, found.macro_recall, found.nll, found.near_ties,
                  gained, lost, p_values, adjusted, strict=True)  # fmt: skip
    rows = (
        [one.layer, one.kind, "" if one.tau is None else one.tau, one.factor, images, *row]
        for one, row in zip(grid, numbers, strict=True)
    )
    store.write_csv(folder / "sweep.csv", header, rows)


def _write_bands(folder: Path, inputs: LayerInputs, setting: Setting, options: Any, kept: Path | None) -> None:
    """Writes `bands.csv`: accuracy with the setting's factor on random units, at sizes along all thresholds."""
    draws = min(options.masks, _BAND_DRAWS)
    if setting.kind != "threshold" or not inputs.feeds_logits or not draws:
        return
    sizes = np.unique(np.linspace(0, inputs.units, _BAND_SIZES).round().astype(int))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(inputs.units), (len(sizes) * draws, 1)), axis=1)
    masks = order < np.repeat(sizes, draws)[:, None]
    tried = try_masks(inputs, masks, setting.factor, scope=options.scope, full=False, store=kept)
    accuracy = tried.accuracy.reshape(len(sizes), draws)
    low, high = np.quantile(accuracy, [0.025, 0.975], axis=1)
    header = ["layer", "factor", "units_above", "draws", "mean", "low", "high"]
    numbers = zip(sizes, accuracy.mean(axis=1), low, high, strict=True)
    rows = ([setting.layer, setting.factor, size, draws, *row] for size, *row in numbers)
    store.write_csv(folder / "bands.csv", header, rows)


def _write_thresholds(
    folder: Path, inputs: Mapping[str, LayerInputs], scores: Mapping[str, np.ndarray], options: Any, kept: Path | None
) -> None:
    """Writes `thresholds.csv`: every threshold that changes anything, for layers where all of them are cheap."""
    header = ["layer", "factor", "units_above", "tau", "correct", "accuracy", "macro_recall", "nll"]
    factors = [factor for factor in options.factor if factor != 1]
    rows = []
    for layer, each in inputs.items():
        if not each.feeds_logits:
            continue
        for found in every_threshold(each, scores[layer], factors, scope=options.scope, store=kept):
            o, ends = found.outcomes, np.append(found.scores, -np.inf)  # tau at the next score: it is not above itself
            for cut in np.flatnonzero(found.reachable()):
                tau = "" if np.isinf(ends[cut]) else ends[cut]
                numbers = (o.correct[cut], o.accuracy[cut], o.macro_recall[cut], o.nll[cut])
                rows.append([layer, found.factor, cut, tau, *numbers])
    if rows:
        store.write_csv(folder / "thresholds.csv", header, rows)


def _by_split(parts: Mapping[str, LayerInputs], gains: np.ndarray, scope: str) -> dict[str, dict[str, Any]]:
    results = {name: evaluate_gains(inputs, gains, scope=scope) for name, inputs in parts.items()}
    return _summaries(results)


def _summaries(results: dict[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """Each split alone and, when there are several, all pooled."""
    if len(results) > 1:
        results = results | {"all": join(*results.values())}
    return {name: result.summary() for name, result in results.items()}


def _ten_crops(
    settings: Any,
    run: store.Run,
    model: Editable,
    scores: Mapping[str, np.ndarray],
    search: Search,
    tests: Sequence[ImageSet],
) -> dict[str, Any]:
    """The grid alone, by repeating the network after the layer for every setting: ten views have no faster way."""
    ((layer, own),) = scores.items()
    options, cells = settings.edit, _grid(search, [layer])
    gains = np.stack([setting.gains(own) for setting in cells])
    with run.timed("sweep"), progress("sweep") as bar:
        how = {"scope": options.scope, "protocol": "tencrop", "batch": settings.evaluate.batch, "progress": bar}
        by_set = [edit_engine.sweep(model, images, layer, gains, **how) for images in tests]
    pooled = [join(*same) for same in zip(*by_set, strict=True)]
    header = ["layer", "kind", "tau", "factor", "images", "correct", "accuracy", "macro_recall", "nll"]
    found = [result.summary() for result in pooled]
    store.write_csv(
        run.folder / "sweep.csv",
        header,
        (
            [*setting, s["images"], s["correct"], s["top1"], s["macro_recall"], s["nll"]]
            for setting, s in zip(cells, found, strict=True)
        ),
    )
    best = max(range(len(cells)), key=lambda at: found[at]["correct"])
    _save(run, edit_engine.edit(model, layer, gains[best], scope=options.scope), tests)
    unedited = np.flatnonzero((gains == 1).all(axis=1))  # none where factor 1 is not in the grid
    named = [test.name for test in tests]
    say("edit: the best cell, chosen on these very images; evidence needs --evaluate.protocol resize40")
    return {
        "setting": cells[best]._asdict(),
        "scope": options.scope,
        "selected_on_test": True,
        "baseline": _at(by_set, named, unedited[0]) if len(unedited) else None,
        "edited": _at(by_set, named, best),
    }


def _at(by_set: Sequence[Sequence[Evaluation]], names: Sequence[str], cell: int) -> dict[str, dict[str, Any]]:
    return _summaries({name: results[cell] for name, results in zip(names, by_set, strict=True)})


def _print(result: dict[str, Any], evidence: Evidence) -> None:
    name = list(result["baseline"])[-1]
    before, after = result["baseline"][name], result["edited"][name]
    say(
        f"edit of {evidence.setting}: {before['correct']} → {after['correct']} of {before['images']} correct on {name}"
        f"{' test splits, that of the choice too' if name == 'all' else ''}, "
        f"top-1 {before['top1']:.3%} → {after['top1']:.3%}, NLL {before['nll']:.4f} → {after['nll']:.4f}"
    )
    say(f"evidence: {evidence.verdict}")
