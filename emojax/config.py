"""Settings: typed, frozen, and complete. `configs/*.yaml` hold values for them; every field is also a flag.

A settings file may hold every section; each verb takes those it uses. Unknown names are refused with the closest known.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from emojax.errors import InputError, did_you_mean

# What `emojax audit` finds.
Reason = Literal["unreadable", "blank", "placeholder", "duplicate", "near_duplicate", "leak"]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Factors = tuple[Annotated[float, Field(gt=0)], ...]
UserPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Section(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The images: a prepared FER2013, an image folder, or rendered faces."""

    path: Path | None = Field(None, description="prepared FER2013, or folder of <class>/ or <split>/<class>/ images")
    kind: Literal["auto", "fer2013", "tfds", "folder", "faces"] = Field(
        "auto", description="what the path is; tfds: prepared by TFDS as array_record; faces renders them, without a path"
    )
    probe_split: str = Field("training", description="split that the probe runs over; 'all' without splits")
    test_splits: tuple[str, ...] = Field(("public_test", "private_test"), description="splits to test on", min_length=1)
    limit: Positive | None = Field(
        None, description="take only the first images of each split; of rendered faces, how many to render"
    )
    exclude: UserPath | None = Field(
        None, description="images to leave out: a csv with a column file, as emojax audit --exclude writes"
    )
    size: Positive | None = Field(None, description="side that folder images are brought to; None keeps a common size")


class Target(Section):
    """The network under study."""

    weights: UserPath | None = Field(
        None, description="weights of a VGGNet, Deep-Emotion or CompactNet: .safetensors, or a PyTorch checkpoint"
    )


class Clip(Section):
    """The CLIP that concepts and images are compared in."""

    path: str | None = Field(None, description="Hugging Face CLIP folder, or hub name such as openai/clip-vit-base-patch16")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="what it computes in")


class Concepts(Section):
    """The concept set."""

    path: str = Field("paper25", description="paper25, classes7, or a file: a concept a line, or csv concept,emotions")


class Probe(Section):
    """The pass over the images."""

    layers: tuple[str, ...] = Field(
        (), description="names or patterns of layers; without any, all but the logits of a VGGNet or a CompactNet"
    )
    pool: Literal["avg", "max"] = Field("avg", description="how convolutions become one number per unit")
    taps: Literal["raw", "relu"] = Field("raw", description="raw outputs, or after BatchNorm and ReLU")
    top_k: Positive = Field(100, description="most activating images kept per unit")
    batch: Positive = Field(256, description="images per step; does not change results")
    tile: Positive | None = Field(None, description="images computed together; None suits the device")
    save_every: float = Field(60.0, ge=0, description="seconds between snapshots that a stopped probe goes on from")
    keep_activations: bool = Field(False, description="also keep pooled activations, for cos_similarity_cubed")


class Dissect(Section):
    """The scores; hyperparameters left at None take the official defaults of the similarity function."""

    similarity: Literal["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed"] = Field(
        "soft_wpmi", description="similarity function of CLIP-Dissect"
    )
    top_k: Positive | None = Field(None, description="images per unit (wpmi, soft_wpmi)")
    a: float | None = Field(None, description="temperature factor on cosines (wpmi, soft_wpmi)")
    lam: float | None = Field(None, description="weight of the layer's prior (wpmi, soft_wpmi)")
    null_sets: int = Field(
        1000, ge=0, description="random image sets that labels are tested against (wpmi, soft_wpmi); 0 leaves it out"
    )
    tau: float = Field(0.0, description="a unit is interpretable when its maximum similarity exceeds this")


class Edit(Section):
    """Edits by labels: the settings that are tried, how one is chosen, and the evidence for it."""

    layers: tuple[str, ...] = Field(
        ("auto",), description="layers to edit, by name or pattern; auto takes the one with the most interpretable units"
    )
    scope: Literal["weights", "weights_and_bias"] = Field("weights", description="what the gain scales")
    tau: tuple[float, ...] = Field(tuple(x / 4 for x in range(-4, 8)), description="thresholds of the grid", min_length=1)
    factor: Factors = Field((1.0, 1.5, 2.0, 2.5, 3.0, 3.5), description="factors of the grid", min_length=1)
    top_fraction: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="also ×factor for these shares of the units, the highest scores"
    )
    continuous: Factors = Field((), description="also factor·(s − min)/(max − min), for these factors")
    gains: UserPath | None = Field(
        None, description="instead of a search, test these gains of one layer: a file of one number per unit (.npy or text)"
    )
    choose_on: Literal["first_split", "all_splits"] = Field(
        "first_split", description="choose on the first test split and confirm on the others; or choose and test on all"
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="level of the tests and the intervals")
    permutations: int = Field(199, ge=0, description="permuted scores that choice and test are repeated with")
    masks: int = Field(1000, ge=0, description="random choices of as many units to compare with")
    learned: bool = Field(False, description="also fit gains on the probe split by gradient, as a yardstick")


class Evaluate(Section):
    """The test."""

    protocol: Literal["resize40", "tencrop"] = Field("resize40", description="one view, or the mean over ten crops")
    batch: Positive = Field(256, description="images per step; does not change results")


class Train(Section):
    """Training: what, on what, and how."""

    task: Literal["vgg", "deep_emotion", "compact", "clip"] = Field(
        "vgg",
        description="a VGGNet, a Deep-Emotion or a compact residual network on labelled images, or a CLIP on rendered faces",
    )
    size: Literal["paper", "small"] = Field(
        "small", description="the network in full, or a small one of the same layers (vgg, compact)"
    )
    start: UserPath | None = Field(None, description="weights to begin with, instead of random ones (not for clip)")
    split: str = Field("training", description="split to train on")
    validation: str = Field("public_test", description="split to choose the epoch on, never trained on")
    test: str | None = Field(None, description="split to test on once, at the end, with the best epoch's weights")
    epochs: Positive = Field(20, description="passes over the training split")
    batch: Positive = Field(128, description="images per step")
    augment: Literal["flip", "affine", "one_crop", "ten_crop"] = Field(
        "flip",
        description="mirror only; mirror, crop, shift, rotation and erasing of the whole face; the same and one crop "
        "of it; or its ten crops, as published (not for clip)",
    )
    contrast: float = Field(
        0.0, ge=0, lt=1, description="strength of random brightness and contrast, not with augment flip (not for clip)"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        description="alpha of the Beta distribution by which pairs of images are blended; 0 for none (not for clip)",
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="what the network computes in while it learns")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd with Nesterov momentum, or adamw")
    schedule: Literal["cosine", "one_cycle", "plateau", "constant"] = Field(
        "cosine", description="of the learning rate; plateau lowers it when validation no longer improves"
    )
    learning_rate: float = Field(1e-3, gt=0, description="its peak")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which it rises (cosine, one_cycle)")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes (not for clip)")
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of weights that is kept; 0 keeps them as they are"
    )
    seed: Seed = Field(0, description="of the first weights, data order, augmentation and dropout")
    seeds: tuple[Seed, ...] = Field((), description="train one network for each, in one program; also an ensemble")
    learning_rates: Factors = Field((), description="train one network for each, and each seed, in one program")
    together: bool = Field(False, description="work on several networks at once instead of in turn; may suit a GPU")
    shard: bool = Field(False, description="split parameters and optimizer over the devices instead of copying them")
    save_every: float = Field(300.0, ge=0, description="seconds between checkpoints within an epoch")


class Report(Section):
    """The page that a run ends with."""

    images: Literal["auto", "none", "thumbnails"] = Field(
        "auto", description="whether the page shows the images; auto shows rendered faces and no people"
    )
    size: float = Field(25.0, gt=0, description="bound of the page in MB; thumbnails shrink to fit it")


class Settings(Section):
    """Everything a settings file may hold."""

    data: Data = Data()
    target: Target = Target()
    clip: Clip = Clip()
    concepts: Concepts = Concepts()
    probe: Probe = Probe()
    dissect: Dissect = Dissect()
    edit: Edit = Edit()
    evaluate: Evaluate = Evaluate()
    train: Train = Train()
    report: Report = Report()
    cache: UserPath = Field(
        Path("~/.cache/emojax"), validate_default=True, description="where probe records are kept between runs"
    )


def verb_model(verb: str, fields: tuple[str, ...], **extra: tuple[Any, Any]) -> type[Section]:
    """A settings class with just the fields of `Settings` that a verb uses, and its extra ones (type, Field)."""
    inherited = {name: (info.annotation, info) for name in fields for info in (Settings.model_fields[name],)}
    return create_model(f"{verb.title()}Settings", __base__=Section, **extra, **inherited)


def read_settings(path: Path) -> Settings:
    """Settings from a YAML file.

    Raises:
      InputError: the file is missing or not YAML, or a name or value is refused; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path}: not YAML that makes sense here (nested too deep)") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values or {}, dict):
        raise InputError(f"{path}: the file must map section names to settings")
    try:
        return Settings.model_validate(values or {})
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Settings)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of a validation as one line that names the setting, the value and what would be right."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            model = model.model_fields[part].annotation
        return f"{where} is not a setting{did_you_mean(str(first['loc'][-1]), model.model_fields)}"
    return f"{where} is {first['input']!r}: {first['msg']}"
