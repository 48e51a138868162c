"""Settings: typed, frozen, complete. `configs/*.yaml` hold values; every field is a flag too.

A settings file may hold every section; each command takes those it uses. Unknown names are refused
with the closest known. The options classes of the library are sections themselves, stated once
where they are used.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from emojax import strict
from emojax.data.named_weights import FER2013_COMPACT, weights_file
from emojax.dissection.calibration import Calibration
from emojax.dissection.options import DEFAULT, DEFAULT_PRIOR, Prior, Similarity
from emojax.editing.search import Edit
from emojax.errors import InputError, did_you_mean
from emojax.section import (
    NAME_OR_PATH,
    Count,
    Factor,
    Factors,
    Positive,
    Section,
    Seed,
    Side,
    Threshold,
    UserPath,
    Weight,
    named_place,
    user_path,
)
from emojax.training.recipe import Recipe

PlannedSteps = Literal["probe", "score", "sweep", "train"]
PublishedClip = Literal["ViT-B/32", "ViT-B/16", "ViT-L/14"]
Named = Annotated[str, AfterValidator(named_place)]
WeightsPath = Annotated[UserPath, AfterValidator(weights_file)]  # a file, or a name that ships


class Data(Section):
    """The images: a prepared FER2013, an image folder, or rendered faces."""

    path: UserPath | None = Field(
        default=None,
        description="prepared FER2013, or folder of <class>/ or <split>/<class>/ images",
    )
    kind: Literal["auto", "fer2013", "tfds", "folder", "faces"] = Field(
        default="auto",
        description="what the path is; tfds: prepared by TFDS as array_record; faces renders them, "
        "without a path",
    )
    probe_split: str = Field(
        default="training", description="split that the probe runs over; 'all' without splits"
    )
    test_splits: tuple[str, ...] = Field(
        default=("public_test", "private_test"), description="splits to test on", min_length=1
    )
    limit: Positive | None = Field(
        default=None,
        description="take only so many images of each split; of rendered faces, how many to render",
    )
    draw: Literal["balanced", "first"] = Field(
        default="balanced",
        description="which images a limit takes: as many of each class, drawn by draw-seed; or the "
        "first",
    )
    draw_seed: Seed = Field(default=0, description="seed of the balanced draw")
    class_map: tuple[str, ...] = Field(
        default=(),
        description="other names for classes of the data, as OLD=NEW; several OLD may have one NEW",
    )
    exclude: UserPath | None = Field(
        default=None,
        description="images to leave out: a csv with a column file, as emojax audit --exclude "
        "writes",
    )
    size: Side | None = Field(
        default=None, description="side that folder images are brought to; None keeps a common size"
    )

    @field_validator("class_map")
    @classmethod
    def _are_pairs(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        for pair in pairs:
            old, equals, new = pair.partition("=")
            if not (old.strip() and equals and new.strip()):
                raise ValueError(f"{pair!r} is not of the form OLD=NEW")
        return pairs


class Target(Section):
    """The network under study: one of `weights`, `path` and `factory`."""

    weights: WeightsPath | None = Field(
        default=None,
        description="weights of a VGGNet, Deep-Emotion or CompactNet, or torchvision's ResNet or "
        "VGG: .safetensors, or a PyTorch checkpoint such as the published VGGNet; or "
        f"{FER2013_COMPACT}, which ships with emojax",
    )
    path: Annotated[Named | None, NAME_OR_PATH] = Field(
        default=None,
        description="Hugging Face folder or hub name of an image classifier or image tower: ViT, "
        "DeiT, DINOv2, ResNet, ConvNeXt, CLIP's or SigLIP's, or one of timm's",
    )
    factory: str | None = Field(
        default=None,
        description="package.module:function of your own, which returns a model, or a function and "
        "its parameters: `logits, taps = model(images)`",
    )
    key: str | None = Field(
        default=None,
        description="what tells versions of the factory's network apart; with it, probe records "
        "are cached",
    )
    classes: tuple[str, ...] = Field(
        default=(),
        description="class names in the order of the outputs, for a weights file that names none",
    )


class Clip(Section):
    """The CLIP that concepts and images are compared in."""

    path: Annotated[Named | None, NAME_OR_PATH] = Field(
        default=None,
        description="Hugging Face CLIP folder, or hub name such as openai/clip-vit-base-patch16",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="what it computes in"
    )


class Concepts(Section):
    """The concept set."""

    path: Annotated[Named, NAME_OR_PATH] = Field(
        default="paper25",
        description="paper25, classes7, faces30, or a file: a concept a line, or csv "
        "concept,emotions",
    )


class Probe(Section):
    """The pass over the images."""

    layers: tuple[str, ...] = Field(
        default=(),
        description="names or patterns of layers; without any, all of the network but a VGGNet's "
        "logits",
    )
    pool: Literal["avg", "max"] = Field(
        default="avg", description="how convolutions become one number per unit"
    )
    tokens: Literal["cls", "mean", "max"] = Field(
        default="cls",
        description="how a transformer's tokens become one number per unit: the first (the class "
        "token where there is one), or the mean or maximum of all",
    )
    taps: Literal["raw", "relu"] = Field(
        default="raw", description="raw outputs, or after BatchNorm and ReLU"
    )
    antialias: bool = Field(
        default=False,
        description="resize the network's input with antialiasing, as the paper's probe did; tests "
        "never do",
    )
    top_k: Positive = Field(default=100, description="most activating images recorded per unit")
    batch: Positive = Field(default=256, description="images per step; does not change results")
    tile: Annotated[int, Field(gt=0, le=65536)] | None = Field(
        default=None, description="images computed together; None suits the device"
    )
    precision: Literal["exact", "high", "bfloat16"] = Field(
        default="exact",
        description="what network and CLIP compute in: float32 in full; with products of three "
        "bfloat16 passes (TPU) or TF32 (GPU); or bfloat16. The summary says how many labels of a "
        "sample it changes",
    )
    save_every: float = Field(
        default=60.0,
        ge=0,
        le=1e9,
        description="seconds between snapshots that a stopped probe resumes from",
    )
    memory: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="GB on a device for the running statistics; layers that do not fit together "
        "are probed in groups, each in a pass of its own",
    )
    keep_activations: bool = Field(
        default=False, description="also keep pooled activations, for cos_similarity_cubed"
    )


class Dissect(Section):
    """The scores; hyperparameters left at None take the official defaults of the similarity
    function.
    """

    similarity: Similarity = Field(
        default=DEFAULT,
        description="a similarity function of CLIP-Dissect, correlation, or consensus: the mean of "
        "soft_wpmi and correlation",
    )
    top_k: Positive | None = Field(
        default=None, description="images per unit (consensus, wpmi, soft_wpmi)"
    )
    a: Factor | None = Field(
        default=None, description="temperature factor on cosines (consensus, wpmi, soft_wpmi)"
    )
    lam: Weight | None = Field(
        default=None, description="weight of the prior (consensus, wpmi, soft_wpmi)"
    )
    prior: Prior = Field(
        default=DEFAULT_PRIOR,
        description="what images are compared with: the layer's units, as published; random "
        "images; or none (consensus, wpmi, soft_wpmi)",
    )
    search: UserPath | None = Field(
        default=None,
        description="file of further texts, one a line, that the page can rank units by",
    )
    null_sets: Count = Field(
        default=1000,
        description="random image sets that labels are tested against (consensus, wpmi, "
        "soft_wpmi); 0 leaves it out",
    )
    abstain: bool = Field(
        default=True,
        description="give no label to a unit unless both halves of the images choose it and its "
        "correlation on the half that did not choose it is above 0 (95 % interval)",
    )
    tau: Threshold = Field(
        default=0.0, description="a unit is interpretable when its maximum similarity exceeds this"
    )


class Labels(Section):
    """Label settings to try together: every combination of what is given."""

    similarity: tuple[Similarity, ...] = Field(
        default=("correlation", "soft_wpmi"),
        description="consensus, correlation, cos_similarity, wpmi, soft_wpmi",
        min_length=1,
    )
    a: Factors = Field(default=(2.0, 5.0, 10.0), description="temperature factors on cosines")
    lam: tuple[Weight, ...] = Field(default=(0.0, 0.6, 1.0), description="weights of the prior")
    top_k: tuple[Positive, ...] = Field(default=(50, 100), description="images per unit")
    prior: tuple[Prior, ...] = Field(
        default=("images", "units"), description="what images are compared with"
    )
    tau: Threshold = Field(
        default=0.0, description="a unit is interpretable when its maximum similarity exceeds this"
    )


class Evaluate(Section):
    """The test."""

    protocol: Literal["resize40", "tencrop"] = Field(
        default="resize40", description="one view, or the mean over ten crops"
    )
    batch: Positive = Field(default=256, description="images per step; does not change results")


class Explain(Section):
    """How long explanations are."""

    most: Positive = Field(default=10, description="most concepts of an explanation")
    tolerance: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="least gain in correlation that another concept must bring",
    )


class Judge(Section):
    """How explanations are judged."""

    alpha: float = Field(
        default=0.02, gt=0, lt=1, description="share of the images on which a unit counts as active"
    )
    resamples: Annotated[Count, Field(gt=0)] = Field(
        default=200, description="bootstrap resamples of the images"
    )
    seed: Seed = Field(default=0, description="of the resamples and of the sanity test's draws")
    pool: Literal["avg", "max"] = Field(
        default="avg", description="how convolutions become one number per unit"
    )
    taps: Literal["raw", "relu"] = Field(
        default="raw", description="raw outputs, or after BatchNorm and ReLU"
    )


class Train(Recipe):
    """Training: what, on what, and how."""

    task: Literal["vgg", "deep_emotion", "compact", "vit", "clip"] = Field(
        default="vgg",
        description="a VGGNet, a Deep-Emotion, a compact residual network or a small ViT on "
        "labelled images, or a CLIP on rendered faces",
    )
    size: Literal["paper", "small"] = Field(
        default="small",
        description="the network in full, or a small one of the same layers (vgg, compact)",
    )
    start: WeightsPath | None = Field(
        default=None,
        description="weights to begin with, instead of random ones (not for clip)",
    )
    split: str = Field(default="training", description="split to train on")
    validation: str = Field(
        default="public_test", description="split to choose the epoch on, never trained on"
    )
    test: str | None = Field(
        default=None, description="split to test on once, at the end, with the best epoch's weights"
    )
    batch: Positive = Field(default=128, description="images per step")
    augment: Literal["flip", "affine", "one_crop", "ten_crop"] = Field(
        default="flip",
        description="mirror only; mirror, crop, shift, rotation and erasing of the whole face; the "
        "same and one crop of it; or its ten crops, as published (not for clip)",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="what the network computes in while it learns"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the target spread over all classes (not for clip)",
    )
    seeds: tuple[Seed, ...] = Field(
        default=(), description="train one network for each; also an ensemble"
    )
    learning_rates: Factors = Field(
        default=(), description="train one network for each, and each seed"
    )
    shard: bool = Field(
        default=False,
        description="split parameters and optimizer over the devices instead of copying them",
    )
    save_every: float = Field(
        default=300.0, ge=0, le=1e9, description="seconds between checkpoints within an epoch"
    )


class Plan(Section):
    """What to compile, and for which accelerators."""

    topology: str = Field(
        default="v5e:2x4",
        description="TPUs by generation and shape: v5e:2x4, v5e:16x16, v4:4x4x4, v5p:4x4x4, "
        "v6e:16x16",
    )
    steps: tuple[PlannedSteps, ...] = Field(
        default=("probe", "score", "sweep", "train"), description="which steps", min_length=1
    )
    network: Literal["vgg", "vgg_small", "compact", "deep_emotion", "resnet50", "vit_b16"] = Field(
        default="vgg", description="the network, where --target names none"
    )
    clip: PublishedClip = Field(
        default="ViT-B/16", description="the size of the CLIP, where --clip.path names none"
    )
    images: Positive = Field(default=28_709, description="images to probe and to train on")
    tests: Positive = Field(default=7_178, description="images to sweep over")
    size: Positive = Field(default=48, description="side of the images")
    channels: Literal[1, 3] = Field(default=1, description="1 for gray images, 3 for colour")
    concepts: Positive = Field(default=20_000, description="concepts to score")


class Report(Section):
    """The page that a run ends with."""

    images: Literal["auto", "none", "thumbnails"] = Field(
        default="auto",
        description="whether the page shows the images; auto shows rendered faces and no people",
    )
    size: float = Field(
        default=25.0,
        gt=0,
        le=1e6,
        description="bound of the page in MB; thumbnails shrink to fit it",
    )


_MAX_SETTINGS = 1 << 20  # bytes of a settings file
# Where `--config NAME` looks: in an installed package, or in a clone.
_CONFIGS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
CACHE = Field(
    default="~/.cache/emojax",  # a text, which is validated as one of a settings file is
    validate_default=True,
    description="where probe records are cached between runs",
)


class Settings(Section):
    """Everything a settings file may hold."""

    data: Data = Data()
    target: Target = Target()
    clip: Clip = Clip()
    concepts: Concepts = Concepts()
    probe: Probe = Probe()
    dissect: Dissect = Dissect()
    labels: Labels = Labels()
    edit: Edit = Edit()
    evaluate: Evaluate = Evaluate()
    explain: Explain = Explain()
    calibration: Calibration = Calibration()
    judge: Judge = Judge()
    train: Train = Train()
    plan: Plan = Plan()
    report: Report = Report()
    cache: UserPath = CACHE


def paths_in(settings: BaseModel, prefix: str = "--") -> Iterator[tuple[str, Path]]:
    """The flag and the value of every setting that names a file or folder, those that the command
    writes included.
    """
    for name, info in type(settings).model_fields.items():
        flag = prefix + name.replace("_", "-")
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from paths_in(value, f"{flag}.")
        elif isinstance(value, str):
            if NAME_OR_PATH in info.metadata and value:
                yield flag, Path(value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield from ((flag, path) for path in values if isinstance(path, Path))


def flags_of(settings: BaseModel) -> list[str]:
    """The arguments of a command line that give the settings that are not the defaults."""
    return list(_flags(settings.model_dump(), type(settings)().model_dump()))


def _flags(values: dict[str, Any], defaults: dict[str, Any], section: str = "") -> Iterator[str]:
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value == defaults[name]:
            continue
        if isinstance(value, dict):
            yield from _flags(value, defaults[name], f"{section}{flag}.")
        elif isinstance(value, bool):
            yield f"--{section}{'' if value else 'no-'}{flag}"
        else:
            yield f"--{section}{flag}"
            yield from map(str, value if isinstance(value, tuple) else (value,))


def read_settings(path: Path | str) -> Settings:
    """Settings from a YAML file, or from one that comes with emojax, by its name: `paper`.

    Raises:
      InputError: the file is missing or not YAML, or a name or value is refused; the message names
        it.
    """
    path = _shipped(_settings_file(path))
    try:
        values = strict.read_yaml(path.read_text("utf-8"))
    except OSError as error:
        files = (file for folder in _CONFIGS for file in folder.glob("*.yaml"))
        known = ", ".join(sorted(file.stem for file in files))
        raise InputError(
            f"cannot read the settings file {path}: {error.strerror}; shipped by name: {known}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not YAML (byte {error.start} is not UTF-8)") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(values or {}, dict):
        raise InputError(f"{path}: the file must map section names to settings")
    try:
        # As JSON, since only there lists are taken for tuples when nothing else is converted: no
        # text is read as a number, no number as a truth value.
        return Settings.model_validate_json(json.dumps(values or {}), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Settings)}") from None


def _settings_file(path: Path | str) -> Path:
    """The path of a settings file; what is there must be a file of a sensible size."""
    from emojax.data.decode import check_regular

    try:
        path = user_path(named_place(path))
    except ValueError as error:
        raise InputError(f"--config: {error}") from None
    check_regular(path, limit=_MAX_SETTINGS, missing_ok=True)
    return path


def _shipped(path: Path) -> Path:
    """The path, or for a bare name that is no file here the file that comes with emojax."""
    if path.parent == Path() and not path.suffix and not path.exists():
        for folder in _CONFIGS:
            if (folder / f"{path}.yaml").is_file():
                return folder / f"{path}.yaml"
    return path


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of a validation as one line that names the setting, the value and what
    would be right.
    """
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            section: Any = model.model_fields[str(part)].annotation
            model = section
        return f"{where} is not a setting{did_you_mean(str(first['loc'][-1]), model.model_fields)}"
    cure = "; write true or false" if first["type"] == "bool_type" else ""
    return f"{where} is {first['input']!r}: {first['msg']}{cure}"
