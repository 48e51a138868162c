"""A network from the user's own code: `--target.factory package.module:function`.

The named module is imported and the named function called, nothing else.
"""

import importlib
import os
import sys
from typing import Any, cast

from flax import nnx

from emojax.commands.console import say
from emojax.errors import InputError
from emojax.ops.image import to_unit
from emojax.probing.network import Network, as_network
from emojax.store import content_key


def open_factory(name: str, key: str | None) -> Network:
    """The network that the user's function returns.

    That is a model, `logits, taps = model(images)`, or a pair of a function and its parameters,
    `logits, taps = function(params, images)`. Either may have an attribute `preprocess`: uint8
    images to its input. Says in one line where nothing can be cached for want of a key.

    Raises:
      InputError: there is no such function, it fails, or it returns something else.
    """
    made = _call(name)
    network = _wrapped(made, name)
    if key is None:
        say(f"{name}: no --target.key, so its probe is not cached and cannot be resumed")
        return _with_key(network, None)
    return _with_key(network, content_key(["factory", name, key]))


def _call(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f"--target.factory is {name!r}, not package.module:function")
    here = os.getcwd()
    sys.path.append(here)  # a script's own folder is not on the path of an installed command
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
        return function()
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"--target.factory {name}: {error}") from None
    finally:
        sys.path.remove(here)


def _wrapped(made: Any, name: str) -> Network:
    if isinstance(made, tuple):
        if len(made) != 2 or not callable(made[0]):
            raise InputError(
                f"--target.factory {name} returned a tuple that is no (function, parameters)"
            )
        function, params = made
        preprocess = getattr(function, "preprocess", to_unit)
        return Network(function, params, preprocess, None)
    if not isinstance(made, nnx.Module) and not callable(made):
        raise InputError(
            f"--target.factory {name} returned a {type(made).__name__}, not a model or "
            "(function, parameters)"
        )
    return as_network(cast(Any, made))  # what it returns is seen when it is run


def _with_key(network: Network, key: str | None) -> Network:
    """The network under the key that the user states: its code may change with no array changed."""
    return Network(network.apply, network.params, network.preprocess, key)
