"""`emojax plan`: what a job would cost on TPUs that are not there, by their own compiler."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath
from emojax.training.recipe import Recipe

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from emojax.distributed.plan import PlannedStep, StepPlan
    from emojax.models.classifier import Classifier
    from emojax.planning import Encoder, ImageShape, ProbePlan

_NOTE = "By the TPU compiler's own estimates; nothing was run, nothing measured."


class PlanSettings(WritesRun):
    """Settings of a plan: its own, and those of the steps that it compiles."""

    plan: settings.Plan = settings.Plan()
    target: settings.Target = settings.Target()
    clip: settings.Clip = settings.Clip()
    probe: settings.Probe = settings.Probe()
    dissect: settings.Dissect = settings.Dissect()
    train: settings.Train = settings.Train()
    out: UserPath = out_folder("plan")


def plan(settings: PlanSettings) -> None:
    """Compiles the steps for a topology and writes what each would cost."""
    import jax

    from emojax import planning, store
    from emojax.commands import opening
    from emojax.commands.console import say, say_written
    from emojax.distributed import topology
    from emojax.distributed.plan import plan_step

    jax.config.update("jax_platforms", "cpu")  # what the plan itself computes is little
    mesh = topology.topology_mesh(settings.plan.topology)
    chip = topology.chip_of(mesh)
    with opening.open_run(settings, "plan") as run:
        model, encoder = planning.as_shapes(_network(settings)), _encoder(settings)
        probe = _probe(settings, model, encoder, mesh)
        makers = {
            "probe": lambda: probe.planned,
            "score": lambda: _score(settings, model, encoder, mesh),
            "sweep": lambda: planning.sweep_step(model, settings.plan.tests, mesh),
            "train": lambda: _train(settings, mesh),
        }
        # All of them before the first compilation: what is refused is refused at once.
        steps = {name: makers[name]() for name in settings.plan.steps}
        chosen = {"tile": probe.tile, "batch": probe.batch}
        say(
            f"plan: {settings.plan.topology}, {mesh.size} devices of "
            f"{topology.hosts_of(mesh)} hosts, {chip.memory / 1e9:.0f} GB and "
            f"{chip.operations / 1e12:.0f}·10¹² operations a second each (bfloat16)"
        )
        plans = {}
        for name, step in steps.items():
            say(f"plan: compiling the step of {name}, which takes seconds to minutes")
            with run.timed(name):
                plans[name] = plan_step(step, mesh)
        host = _host_work(settings, probe, plans.get("probe"), mesh)
        store.write_json(
            run.folder / "plan.json",
            {
                "note": _NOTE,
                "topology": settings.plan.topology,
                "devices": mesh.size,
                "hosts": topology.hosts_of(mesh),
                "device": chip._asdict(),
                "chosen": chosen,
                "host": host,
                "steps": {name: _as_json(plan) for name, plan in plans.items()},
            },
        )
    _print(plans, mesh)
    _say_rest(plans, host, chosen)
    say_written(settings.out)


def _probe(
    settings: PlanSettings, model: "Classifier", encoder: "Encoder", mesh: "Mesh"
) -> "ProbePlan":
    """The probe's step, whose settings are those that a plan chooses."""
    from emojax import planning

    probe = settings.probe
    return planning.probe_step(
        model,
        encoder,
        _images(settings),
        mesh,
        layers=probe.layers,
        pool=probe.pool,
        taps=probe.taps,
        top_k=probe.top_k,
        batch=probe.batch,
        tile=probe.tile,
        keep_activations=probe.keep_activations,
        precision=probe.precision,
    )


def _score(
    settings: PlanSettings, model: "Classifier", encoder: "Encoder", mesh: "Mesh"
) -> "PlannedStep":
    """The scoring of the record that the probe leaves."""
    from emojax import planning
    from emojax.dissection.options import wpmi_options
    from emojax.errors import InputError

    asked = settings.dissect
    options = wpmi_options(asked.similarity, asked.top_k, asked.a, asked.lam, asked.prior)
    if options is None:
        raise InputError(
            f"{asked.similarity} is scored in no step of its own; plan compiles consensus, "
            "soft_wpmi and wpmi, or leave score out of --plan.steps"
        )
    return planning.score_step(
        model,
        encoder,
        settings.plan.images,
        settings.plan.concepts,
        mesh,
        options,
        layers=settings.probe.layers,
        null_sets=asked.null_sets,
    )


def _train(settings: PlanSettings, mesh: "Mesh") -> "PlannedStep":
    """A step of the training that the settings describe."""
    from emojax import planning
    from emojax.errors import InputError
    from emojax.training.classifiers import new_network

    train, task = settings.train, settings.train.task
    if task == "clip":
        raise InputError(
            "plan compiles the training of classifiers, not of a CLIP; "
            "leave train out of --plan.steps"
        )
    return planning.train_step(
        lambda images: new_network(task, images, 0, size=train.size),
        _images(settings),
        mesh,
        Recipe(**{name: getattr(train, name) for name in Recipe.model_fields}),
        batch=train.batch,
        augment=train.augment,
        precision=train.precision,
        label_smoothing=train.label_smoothing,
        shard=train.shard,
    )


def _images(settings: PlanSettings) -> "ImageShape":
    from emojax.planning import ImageShape

    options = settings.plan
    return ImageShape(options.images, options.size, options.size, options.channels)


def _network(settings: PlanSettings) -> "Callable[[], Any]":
    """What builds the network under study: the target's, or one of the size that is named."""
    from flax import nnx

    from emojax.commands import opening
    from emojax.errors import InputError
    from emojax.models.compact import CompactConfig, CompactNet
    from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
    from emojax.models.resnet import ResNet, ResNetConfig
    from emojax.models.vgg import VggConfig, VggNet
    from emojax.models.vit import Vit, VitConfig
    from emojax.probing.network import Network

    target, options = settings.target, settings.plan
    if target.factory is not None:
        raise InputError("plan takes networks of files; --target.factory gives none")
    if target.weights is not None or target.path is not None:
        model = opening.open_target(target)
        assert not isinstance(model, Network)  # those are of factories
        return lambda: nnx.merge(*nnx.split(model))
    if options.network == "deep_emotion":
        return lambda: DeepEmotion(DeepEmotionConfig(options.channels, 7), rngs=nnx.Rngs(0))
    if options.network == "compact":
        return lambda: CompactNet(CompactConfig(), rngs=nnx.Rngs(0))
    if options.network == "resnet50":
        return lambda: ResNet(ResNetConfig.resnet50(), rngs=nnx.Rngs(0))
    if options.network == "vit_b16":
        return lambda: Vit(VitConfig.base(), rngs=nnx.Rngs(0))
    sizes = VggConfig.paper() if options.network == "vgg" else VggConfig.small()
    return lambda: VggNet(sizes, rngs=nnx.Rngs(0))


def _encoder(settings: PlanSettings) -> "Encoder":
    """The CLIP of the settings, or one of a published size."""
    import jax.numpy as jnp
    from flax import nnx

    from emojax.commands import opening
    from emojax.models.clip import PUBLISHED, Clip
    from emojax.planning import Encoder

    if settings.clip.path is not None:
        clip = opening.open_clip(settings.clip)
        return Encoder.of(lambda: clip.model, clip.preprocess)
    config, dtype = PUBLISHED[settings.plan.clip], jnp.dtype(settings.clip.dtype)
    return Encoder.of(lambda: Clip(config, dtype=dtype, rngs=nnx.Rngs(0)))


def _host_work(
    settings: PlanSettings, probe: "ProbePlan", step: "StepPlan | None", mesh: "Mesh"
) -> dict[str, Any]:
    """What the hosts do while the devices probe: what process 0 takes in, and how fast all read."""
    from emojax.distributed.topology import hosts_of
    from emojax.probing.step import snapshot_bytes

    written, from_others = snapshot_bytes(probe.state, hosts_of(mesh))
    work: dict[str, Any] = {
        "snapshot_bytes": written,
        "snapshot_bytes_of_process_0": from_others,
        "row_bytes_of_process_0": probe.row_bytes,
    }
    if step is not None:
        images = step.images_per_second_per_chip * mesh.size / hosts_of(mesh)
        size = math.prod((settings.plan.size, settings.plan.size, settings.plan.channels))
        work |= {"read_images_per_second": images, "read_bytes_per_second": images * size}
    return work


def _as_json(plan: "StepPlan") -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def _print(plans: "dict[str, StepPlan]", mesh: "Mesh") -> None:
    from rich.table import Table

    from emojax.commands.console import console
    from emojax.distributed.plan import of_chip
    from emojax.distributed.topology import chip_of

    chip = chip_of(mesh)
    table = Table("step", title=f"{chip.name}, {mesh.size} devices", title_justify="left")
    table.caption, table.caption_justify = _NOTE, "left"
    columns = ("ms", "images/s\na device", "images/s\nin all", "share\nof peak", "memory\na device")
    for column in columns:
        table.add_column(column, justify="right")
    for name, plan in plans.items():
        table.add_row(
            name,
            f"{1e3 * plan.seconds:.3g}",
            f"{plan.images_per_second_per_chip:,.0f}",
            f"{plan.images_per_second_per_chip * mesh.size:,.0f}",
            f"{plan.peak_share:.0%}",
            of_chip(plan, chip),
        )
    console.print(table)


def _say_rest(plans: "dict[str, StepPlan]", host: dict[str, Any], chosen: dict[str, int]) -> None:
    from emojax.commands.console import say

    say(f"probe: tile {chosen['tile']}, batch {chosen['batch']}")
    taken, written = host["snapshot_bytes_of_process_0"], host["snapshot_bytes"]
    say(
        f"process 0 takes in {_size(taken)} from other hosts at every snapshot of a probe "
        f"(--probe.save-every) and writes {_size(written)}; and "
        f"{_size(host['row_bytes_of_process_0'])} of each image"
    )
    if "read_images_per_second" in host:
        say(
            f"each host must read {host['read_images_per_second']:,.0f} images/s "
            f"({_size(host['read_bytes_per_second'])}/s of pixels) to keep its devices busy"
        )
    for name, plan in plans.items():
        parts = (f"{part} {spent / plan.seconds:.0%}" for part, spent in plan.parts.items())
        sent = (f"{_size(size)} by {kind}" for kind, size in plan.bytes_exchanged.items())
        say(f"{name}: time {', '.join(parts)}; exchanged {', '.join(sent) or 'nothing'}")
        for loop in plan.unknown_loops:
            say(f"{name}: a loop of unknown count is counted once: {loop}")
        rest = ", ".join(f"{kind} ×{runs}" for kind, runs in plan.without_estimate.items())
        if rest:
            say(f"{name}: without an estimate, and not in these times: {rest}")


def _size(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


COMMAND = Command(
    "plan",
    "what a job would cost on TPUs that are not there, by their compiler",
    PlanSettings,
    plan,
    short={"--topology": "--plan.topology"},
)
