"""What a study would refuse, checked before the probe, which takes long."""

import logging
import math
from collections.abc import Sequence

from flax import nnx

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.editing.edit import read_gains
from emojax.editing.search import AUTO, PAPER_STUDY, Edit
from emojax.errors import InputError
from emojax.models.classifier import Cuttable, Editable
from emojax.probing.network import resolve_layers
from emojax.training.evaluate import Protocol, labelled

_log = logging.getLogger("emojax")
# What of an edit by named concepts has no meaning where they are erased.
_OF_UNITS = ("amplify", "layers", "rule", "least", "suppress_factor", "scope")


def check_study(
    model: nnx.Module,
    options: Edit,
    images: ImageSet,
    tests: Sequence[ImageSet],
    *,
    probed: Sequence[str] = (),
    protocol: Protocol = "resize40",
    concepts: ConceptSet | None = None,
) -> None:
    """Refuses before the probe what the study would refuse after it.

    Args:
      model: the network.
      options: of the study.
      images: the probe images.
      tests: labelled test splits.
      probed: names or patterns of the layers that are probed; without any, the network's own.
      protocol: of the test.
      concepts: the set that an edit by name takes its concepts from.

    Raises:
      InputError: no edit to search, concepts that are not in the set, layers that are not probed,
        too few permutations, a bad file of gains, test sets without labels, or the same images
        where different ones are needed.
    """
    if not isinstance(model, Editable):
        raise InputError(
            "edits are made to a VGGNet, a CompactNet or the networks of --target.path, and this "
            f"is a {type(model).__name__}; `emojax dissect` labels its units"
        )
    if protocol == "tencrop" and not isinstance(model, Cuttable):
        raise InputError(
            "--evaluate.protocol tencrop crops to the input of a VGGNet or a CompactNet; use "
            "resize40"
        )
    units = model.config.units()
    layers = options.layers
    if layers != (AUTO,):
        available = resolve_layers(probed or model.config.probed(), list(units))
        layers = resolve_layers(layers, available)
    one_view = protocol == "resize40"
    other_kinds = options.top_fraction or options.continuous
    if options.by_concept:
        _check_named(options, layers, concepts, one_view=one_view)
        if options.method == "erase" and (reason := why_not_erased(model, images, options)):
            raise InputError(f"--edit.method erase: {reason}; change that, or leave the method out")
    elif options.gains is not None:
        if len(layers) != 1 or layers[0] == AUTO:
            raise InputError("--edit.gains are those of one layer; name it with --edit.layers")
        read_gains(options.gains, units[layers[0]])
    elif not options.settings([AUTO]):
        raise InputError("--edit.factor has only 1, which edits nothing; give another factor")
    elif not one_view and (len(layers) > 1 or other_kinds):
        raise InputError(
            "--evaluate.protocol tencrop takes thresholds on one layer; use resize40 for other "
            "searches"
        )
    # The smallest p-value that R permutations can give is 1 / (R + 1).
    if options.permutations and 1 / (options.permutations + 1) > options.alpha:
        least = math.ceil(1 / options.alpha) - 1
        given = f"--edit.permutations {options.permutations}"
        raise InputError(f"{given} cannot reach p ≤ {options.alpha:g}; give at least {least}")
    _check_sets(model, options, images, tests)


def _check_named(
    options: Edit, layers: Sequence[str], concepts: ConceptSet | None, *, one_view: bool
) -> None:
    """Refuses an edit by named concepts that contradicts itself or names no known one."""
    if concepts is not None:
        concepts.indices([*options.suppress, *options.amplify])
    if both := set(options.suppress) & set(options.amplify):
        raise InputError(
            f"--edit.suppress and --edit.amplify both name {min(both)!r}; name it once"
        )
    if options.gains is not None:
        raise InputError(
            "--edit.gains and --edit.suppress or --edit.amplify are edits each; give one"
        )
    if len(layers) != 1:
        raise InputError(
            f"--edit.layers names {', '.join(layers)}; an edit by concepts is of one layer"
        )
    if not one_view:
        raise InputError(
            "--evaluate.protocol tencrop takes thresholds on one layer; use resize40 for concepts"
        )


def erases(model: Editable, images: ImageSet, options: Edit, clip: ClipEncoder | None) -> bool:
    """Whether an edit by named concepts erases them, or scales their units.

    Logs which of them the method `auto` takes, and why. `clip` is the record's.
    """
    if options.method != "auto":
        return options.method == "erase"
    reason = why_not_erased(model, images, options)
    if reason is None and clip is None:
        reason = "the record was read from disk, without the CLIP that made it"
    if reason is None:
        _log.info(
            "edit: %s erased from the last layer; --edit.method units scales units instead",
            ", ".join(map(repr, options.suppress)),
        )
    else:
        _log.info("edit: units are scaled, nothing is erased, since %s", reason)
    return reason is None


def why_not_erased(model: Editable, images: ImageSet, options: Edit) -> str | None:
    """What stands against erasing the suppressed concepts; None where nothing does."""
    given = [name for name in _OF_UNITS if getattr(options, name) != getattr(PAPER_STUDY, name)]
    if given:
        flags = ", ".join(f"--edit.{name.replace('_', '-')}" for name in given)
        return f"{flags} {'is' if len(given) == 1 else 'are'} of units"
    if not isinstance(model, Cuttable):
        return f"the last layer of a {type(model).__name__} is not ours to change"
    if images.labels is None:
        return f"{images.name} has no class labels"
    try:
        labelled(images, model)
    except InputError as error:
        return str(error)
    return None


def _check_sets(
    model: Editable, options: Edit, images: ImageSet, tests: Sequence[ImageSet]
) -> None:
    names: dict[str, str] = {}
    for test in tests:
        labelled(test, model)
        if test.key in names:
            raise InputError(
                f"test splits {names[test.key]} and {test.name} are the same images; name "
                "different ones"
            )
        names[test.key] = test.name
    if options.learned:
        labelled(images, model)
        if images.key in names:
            raise InputError(
                f"--edit.learned fits gains on {images.name}, which is also a test split; probe "
                "another split"
            )
