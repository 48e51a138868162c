"""What a probe step costs: operations, memory and bytes exchanged from formulas, beside XLA's own
analysis of the step.

    python scripts/scale.py                            # the published VGGNet with ViT-B/16
    python scripts/scale.py --clip b32 --tile 256 --devices 8

The step is compiled for this machine's CPU from shapes alone; no weights are made. `docs/scale.md`
quotes what this prints; `tests/scripts/test_scale.py` compares the formulas with XLA's numbers. XLA
counts one trip of a loop, so every device gets one tile.
"""

import dataclasses
import runpy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

# float32 multiplications in full precision, 10¹² operations a second: of the data sheets, bfloat16
# / 6 for TPUs
CHIPS = {"TPU v4": 275 / 6, "TPU v5e": 197 / 6, "TPU v5p": 459 / 6, "A100": 19.5, "H100 SXM": 67.0}
BLOCK = 32  # units of which a CPU's device has whole multiples


class Cost(NamedTuple):
    """Of a step, for each device but where it says otherwise.

    Attributes:
      operations: of an image: multiplications and additions of both networks' products and the
        moments.
      parameters: bytes of both networks' weights, CLIP's text tower left out.
      state: bytes of top-k lists and sums, those of the device's units.
      images: bytes of images and their numbers that come from the host.
      rows: bytes of embeddings (and kept activations) that leave the device.
      exchanged: bytes that collectives give it: all images' activations of its units, embeddings
        and numbers (and kept activations where processes share the mesh).
    """

    operations: int
    parameters: int
    state: int
    images: int
    rows: int
    exchanged: int


def vgg_operations(config: Any) -> int:
    """Of the convolutions and dense layers, for an image; products with the padding are not
    counted, but in the first.
    """
    total, side, inputs = 0, config.input_size, 1
    for at, width in enumerate(config.widths):
        total += 2 * inputs * width * ((3 * side) ** 2 if at == 0 else (3 * side - 2) ** 2)
        side, inputs = (side // 2 if at % 2 else side), width
    inputs *= side**2
    for width in (*config.hidden, config.classes):
        total, inputs = total + 2 * inputs * width, width
    return total


def vision_operations(config: Any) -> int:
    """Of CLIP's image tower, for an image."""
    tower, patches = config.vision, (config.image_size // config.patch_size) ** 2
    tokens, width = patches + 1, tower.width
    block = (
        4 * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width + 2 * 2 * tokens * width * tower.mlp
    )
    return (
        2 * patches * 3 * config.patch_size**2 * width
        + tower.depth * block
        + 2 * width * config.embedding
    )


def estimate(
    vgg: Any,
    clip: Any,
    parameters: int,
    *,
    side: int,
    top_k: int,
    tile: int,
    devices: int,
    keep: bool = False,
    shared: bool = True,
) -> Cost:
    """From formulas; `parameters` are numbers of weights, all but the last layer of the network is
    probed. `shared`: several processes share the mesh.
    """
    units, width = sum(vgg.widths) + sum(vgg.hidden), clip.embedding
    own = -(-units // (BLOCK * devices)) * BLOCK
    batch = tile * devices
    kept = 4 * units * (batch if shared else tile) if keep else 0
    return Cost(
        operations=vgg_operations(vgg) + vision_operations(clip) + 2 * units * width + 2 * width**2,
        parameters=4 * parameters,
        state=16 * (own * top_k + 2 * own + own * width + width**2 + width) + 4 * (own + width),
        images=tile * (side**2 + 4),
        rows=4 * batch * width + kept,
        exchanged=4 * batch * (own + width + 1) + (kept if shared else 0),
    )


def compiled_step(
    vgg: Any, clip: Any, *, side: int, top_k: int, tile: int, devices: int, keep: bool, shared: bool
) -> Any:
    """The probe's compiled step for so many devices of this machine and gray images, and the
    weights that it reads.

    `shared` compiles it as if the devices belonged to several processes.
    """
    import jax
    from flax import nnx

    from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD
    from emojax.distributed import mesh as meshes
    from emojax.models.clip import Clip
    from emojax.models.preprocess import Preprocess
    from emojax.models.vgg import VggNet
    from emojax.probing import step as steps
    from emojax.probing.network import Network, pooled_taps, resolve_layers

    def network() -> VggNet:
        model = VggNet(vgg, rngs=nnx.Rngs(0))
        model.eval()
        return model

    model, tower = nnx.eval_shape(network), nnx.eval_shape(lambda: Clip(clip, rngs=nnx.Rngs(0)))
    (graph, params), (clip_graph, clip_params) = nnx.split(model), nnx.split(tower)
    named = Network(
        lambda params, images: nnx.merge(graph, params)(images), params, model.preprocess, None
    )
    layers = resolve_layers(("conv*", "lin1", "lin2"), list(vgg.units()))
    preprocess = Preprocess(clip.image_size, (clip.image_size,) * 2, CLIP_MEAN, CLIP_STD)
    mesh = meshes.make_mesh(devices)
    forward = steps.Forward(pooled_taps(named, layers, "avg"), clip_graph, preprocess)
    readable = steps.host_readable
    try:
        steps.host_readable = meshes.replicated if shared else readable
        step = steps.make_step(forward, tile, keep, mesh)
    finally:
        steps.host_readable = readable
    units = sum(vgg.units()[name] for name in layers)
    empty = jax.eval_shape(lambda: steps.empty_state(units, top_k, clip.embedding))
    weights = params, clip_params
    arguments = steps.shapes(mesh, weights, empty, tile * devices, (side, side, 1))
    return step.lower(*arguments).compile(), probed_weights(params, clip_params)


def probed_weights(params: Any, clip_params: Any) -> int:
    """How many weights a probe reads: the network but its logits, and CLIP but its text tower and
    scale.
    """
    from flax import nnx

    unread = ("lin3", "text_", "token_", "logit_scale")
    flat = [*nnx.to_flat_state(params), *nnx.to_flat_state(clip_params)]
    return sum(leaf.size for path, leaf in flat if not str(path[0]).startswith(unread))


def exchanged(compiled: Any) -> int:
    """Bytes of the results of all collective operations of a compiled step."""
    from emojax.distributed import hlo

    cost = hlo.cost(hlo.parse(compiled.as_text()), lambda scope: "")
    return sum(cost.exchanged.values())


@dataclasses.dataclass
class Options:
    """The published VGGNet beside a CLIP, over gray images."""

    clip: Literal["tiny", "b32", "b16"] = "b16"
    side: int = 48
    top_k: int = 100
    tile: int = 16
    """images of each device in a step"""
    devices: int = 2


def main(options: Options) -> None:
    """Prints the table."""
    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    from emojax.models.clip import ClipConfig
    from emojax.models.vgg import VggConfig

    networks = Path(__file__).parent / "benchmarks" / "networks.py"
    sizes = runpy.run_path(str(networks))["clip_config"](options.clip)
    vgg, clip = VggConfig.paper(), ClipConfig.from_hf(sizes.to_dict())
    shapes = {
        "side": options.side,
        "top_k": options.top_k,
        "tile": options.tile,
        "devices": options.devices,
    }
    compiled, parameters = compiled_step(vgg, clip, **shapes, keep=False, shared=True)
    cost, memory = estimate(vgg, clip, parameters, **shapes), compiled.memory_analysis()
    print(
        f"VGGNet with {options.clip}, {options.devices} devices × {options.tile} images of "
        f"{options.side}×{options.side}"
    )
    ours = cost.operations * options.tile
    rows = [
        ("operations a step", ours / 1e9, compiled.cost_analysis()["flops"] / 1e9, "10⁹"),
        (
            "arguments",
            (cost.parameters + cost.state + cost.images) / 1e6,
            memory.argument_size_in_bytes / 1e6,
            "MB",
        ),
        ("exchanged", cost.exchanged / 1e6, exchanged(compiled) / 1e6, "MB"),
        ("working memory", float("nan"), memory.temp_size_in_bytes / 1e6, "MB"),
    ]
    for name, ours, xla, unit in rows:
        print(f"  {name:<20} {ours:>10.3f} by the formulas, {xla:>10.3f} by XLA, {unit}")
    sizes = f"weights {cost.parameters / 1e6:.0f} MB, state {cost.state / 1e6:.0f} MB"
    print(f"  an image takes {cost.operations / 1e9:.2f}·10⁹ operations; {sizes}")
    for chip, peak in CHIPS.items():
        print(
            f"  {chip:<10} {peak:>5.1f}·10¹² a second: "
            f"{peak * 1e12 / cost.operations:>7,.0f} images/s at most"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
