"""Writes a dissection as a run folder with its page: from the command line, and from Python for any
network.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from emojax import outputs, store
from emojax.data.image_set import ImageSet
from emojax.dissection import encoder_check, find
from emojax.dissection.find import Profiles
from emojax.dissection.labels import Dissection
from emojax.dissection.table import LayerSummary, interpretability
from emojax.errors import InputError
from emojax.probing.maps import Maps, activation_maps
from emojax.probing.network import Network, ReturnsTaps, as_network
from emojax.report import explorer, results, units
from emojax.tables import Columns

PAGE, FIGURES = "report.html", "figures"


def write_dissection(
    folder: Path,
    dissection: Dissection,
    tau: float,
    network: Mapping[str, int] | None = None,
    outgoing: np.ndarray | None = None,
    *,
    abstain: bool = True,
    encoder: Mapping[str, Any] | None = None,
    profiles: Profiles | None = None,
    maps: Maps | None = None,
    image_set: str | None = None,
) -> tuple[list[LayerSummary], dict[str, Any]]:
    """Writes a dissection into a folder; returns Table 1 and the summary that was written.

    `dissection.csv` has a row per unit, `interpretability.csv` is the paper's Table 1,
    `summary.json` both in numbers, and `units.npz` what the page shows of each unit; `network` and
    `outgoing` as for `units.collect`. With `abstain` a column says which labels stand
    (`Dissection.trusted`). `encoder` is what is known of the CLIP (`encoder_check.summary`),
    `profiles` what the page searches units by, `maps` where in their images units are active;
    `image_set` is what the images are called.
    """
    names = dissection.concepts.concepts
    table = dissection.columns()
    if not abstain:
        table.pop("labelled", None)
    write_columns(folder / "dissection.csv", table)
    table1 = interpretability(dissection, tau)
    store.write_csv(
        folder / "interpretability.csv",
        [field.name for field in fields(LayerSummary)],
        (["" if value is None else value for value in asdict(row).values()] for row in table1),
    )
    units.save(units.collect(dissection, network, outgoing, profiles, maps), folder)
    summary = {
        "images": dissection.record.images,
        "encoder": encoder,
        "pool": dissection.record.pool,
        "tokens": dissection.record.tokens,
        "network": dissection.record.network,
        "clip": dissection.record.clip_name,
        "antialias": dissection.record.antialias,
        "layers": dissection.record.layers,
        "concepts": len(dissection.concepts),
        "concept_set": dissection.concepts.name,
        "image_set": image_set,
        "undescribed": dissection.undescribed,
        "similarity": dissection.similarity,
        "prior": dissection.prior,
        "undefined_pairs": dissection.undefined,
        "tau": tau,
        "interpretability": [asdict(row) for row in table1],
        "confidence": _confidence_summary(dissection),
        "hubs": {
            "effective_labels": dissection.hubs.effective,
            "most_frequent": names[dissection.hubs.concept],
            "share": dissection.hubs.share,
        },
    }
    store.write_json(folder / "summary.json", summary)
    return table1, summary


def write_columns(path: Path, table: Columns) -> None:
    """Writes the columns of a `Tabular` as a csv."""
    rows = zip(*(map(_cell, column) for column in table.values()), strict=True)
    store.write_csv(path, list(table), rows)


def _cell(value: Any) -> Any:
    """A value of a table as a csv has it: blank where it is not known."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    unknown = value is None or (isinstance(value, float | np.floating) and np.isnan(value))
    return "" if unknown else value


def _confidence_summary(dissection: Dissection) -> dict[str, Any] | None:
    """How many labels are above chance at a false discovery rate of 5 %, how many hold on either
    half, and how many stand by `Dissection.trusted`; None where that is not known.
    """
    confidence = dissection.confidence
    if confidence is None:
        return None
    holds = confidence.holds(dissection.labels)
    q_value = confidence.q_value
    return {
        "significant_at_q05": None if q_value is None else int((q_value <= 0.05).sum()),
        "halves_agree": None if holds is None else int(holds.sum()),
        "trusted": None if dissection.trusted is None else int(dissection.trusted.sum()),
    }


def write_report(
    dissection: Dissection,
    out: Path | str,
    *,
    tau: float = 0.0,
    images: ImageSet | None = None,
    people: bool = True,
    size: float = 25,
    search: Sequence[str] = (),
    overwrite: bool = False,
    model: ReturnsTaps | nnx.Module | Network | None = None,
) -> Path:
    """Writes a dissection of any network as a run folder with its page; returns the page's path.

    Args:
      dissection: the dissection.
      out: the folder, which must not hold anything but, with `overwrite`, a run to replace.
      tau: a unit is interpretable when its maximum similarity exceeds this.
      images: the set that was probed, to show its images on the page; None shows none.
      people: whether these are people's faces, which the page then says.
      size: bound of the page in MB.
      search: texts that the page can rank units by, beside the concepts. They need the encoder,
        which a record from disk does not bring; without it there is no such search.
      overwrite: replaces the run that is there.
      model: the network that was probed, or a `Network` with the taps and preprocessing that it was
        probed with. With it and the images the page shows where in its top images a unit is active.

    Raises:
      InputError: the folder holds other things, the images are not as many as were probed, or the
        model does not give the record's activations.
    """
    if images is not None and len(images) != dissection.record.images:
        raise InputError(
            f"{images.name} has {len(images)} images, {dissection.record.images} were probed; "
            "pass the set that was"
        )
    settings = {"similarity": dissection.similarity, "dissect": {"tau": tau}}
    maps = None
    if model is not None and images is not None:
        probed = as_network(model, antialias=bool(dissection.record.antialias))
        order = explorer.trust_order(dissection.columns())
        maps = activation_maps(probed, images, dissection.record, order)
    with store.run_folder(Path(out), "dissect", settings, overwrite=overwrite) as run:
        keys = {"record": dissection.record.key, "clip": dissection.record.clip_key}
        run.inputs |= {name: key for name, key in keys.items() if key}
        clip = dissection.record.clip
        check = clip and encoder_check.zero_shot(dissection.record, clip)
        encoder = clip and encoder_check.summary(clip, check)
        texts = tuple(dict.fromkeys((*dissection.concepts.concepts, *search)))
        profiles = clip and find.profiles(dissection.record, texts, clip.embed_texts(texts))
        write_dissection(
            run.folder,
            dissection,
            tau,
            encoder=encoder,
            profiles=profiles,
            maps=maps,
            image_set=None if images is None else images.name,
        )
    with noting_a_missing_page(Path(out)):
        return add_page(results.read_run(Path(out)), images, people=people, size=size)[0]


@contextlib.contextmanager
def noting_a_missing_page(folder: Path) -> Iterator[None]:
    """For a block that adds the page to a finished run: whatever ends it, its message says how to
    have the page.
    """
    try:
        yield
    except BaseException as error:  # a signal too
        error.add_note(
            f"the run in {folder} is whole but for its page, which `emojax report {folder}` makes"
        )
        raise


def add_page(
    run: results.Results, images: ImageSet | None, *, people: bool, size: float
) -> tuple[Path, int]:
    """Writes `report.html` and `figures/` into a run's folder; returns the page's path and the
    number
    of figures.

    Files of other names stay, but for figures of an earlier page that this one does not have.

    Raises:
      InputError: the page cannot be made that small, or the folder cannot be written.
    """
    from emojax.report import figures, page  # matplotlib and jinja2 load only for a page

    text, drawn = page.build(run, images, people=people, size=size)
    folder = run.folder / FIGURES
    if folder.is_symlink():
        raise InputError(f"{folder} is a link, which is not written through; remove it")
    names = [f"{FIGURES}/{name}.{kind}" for name in drawn for kind in ("png", "svg")]
    try:
        store.list_again(run.folder, [PAGE, *names], done=False)
        for name, figure in drawn.items():
            store.write_binary(
                folder / f"{name}.png", functools.partial(figures.save, figure.figure)
            )
            store.write_text(folder / f"{name}.svg", figure.svg)
        store.write_text(run.folder / PAGE, text)
        store.list_again(run.folder, [PAGE, *names], done=True)
        _remove_stale(run.folder, names)
    except OSError as error:
        raise InputError(f"cannot write to {run.folder}: {error.strerror}") from None
    return run.folder / PAGE, len(drawn)


def _remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Removes the figures that an earlier page wrote and this one did not, unless somebody changed
    them.
    """
    listed = outputs.read_manifest(folder).get("files", {})
    for path in (folder / FIGURES).glob("*"):
        name = path.relative_to(folder).as_posix()
        if name in listed and name not in names and outputs.is_unchanged(path, listed[name]):
            path.unlink()
