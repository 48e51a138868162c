"""A network from the user's own code, `--target.factory package.module:function`, and other
functions that flags name.

The named module is imported and the named function called, nothing else.
"""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
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
    images to its input, and may take `gains`, {layer: [U]}, which scale the layers' outputs: that
    can be edited. Says in one line where nothing can be cached for want of a key.

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
    flag = "--target.factory"
    with _own_folder_on_path():
        function = user_function(flag, name)
        try:
            return function()
        except (ImportError, AttributeError, TypeError) as error:
            raise InputError(f"{flag} {name}: {error}") from None


def user_function(flag: str, name: str) -> Callable[..., Any]:
    """The function `package.module:function` that a flag names.

    Raises:
      InputError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f"{flag} is {name!r}, not package.module:function")
    with _own_folder_on_path():
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError, TypeError) as error:
            raise InputError(f"{flag} {name}: {error}") from None
    if not callable(function):
        raise InputError(f"{flag} {name}: it is a {type(function).__name__}, not a function")
    return function


@contextlib.contextmanager
def _own_folder_on_path() -> Iterator[None]:
    """A script's own folder is not on the path of an installed command."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _wrapped(made: Any, name: str) -> Network:
    if isinstance(made, tuple):
        if len(made) != 2 or not callable(made[0]):
            raise InputError(
                f"--target.factory {name} returned a tuple that is no (function, parameters)"
            )
        function, params = made

        def under_gains(params: Any, images: Any, gains: Any) -> Any:
            return function(params, images, gains=gains)

        preprocess = getattr(function, "preprocess", to_unit)
        return Network(function, params, preprocess, None, scaled=_scaled(function, under_gains))
    if not isinstance(made, nnx.Module) and not callable(made):
        raise InputError(
            f"--target.factory {name} returned a {type(made).__name__}, not a model or "
            "(function, parameters)"
        )
    network = as_network(cast(Any, made))  # what it returns is seen when it is run
    graphdef = nnx.split(made)[0] if isinstance(made, nnx.Module) else None

    def scaled(params: Any, images: Any, gains: Any) -> Any:
        model = made if graphdef is None else nnx.merge(graphdef, params)
        return model(images, gains=gains)

    return replace(network, scaled=_scaled(made, scaled))


def _scaled(made: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any] | None:
    """`call`, if what the user's function returned takes gains by that name; else None."""
    return call if "gains" in inspect.signature(made).parameters else None


def _with_key(network: Network, key: str | None) -> Network:
    """The network under the key that the user states: its code may change with no array changed."""
    return Network(network.apply, network.params, network.preprocess, key, scaled=network.scaled)
