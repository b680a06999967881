"""What `longshore serve TARGET` names: a handler in a file or in a module; and a framing of the user's own.

The only place that imports the user's code.  Whatever goes wrong in there becomes one line that names file,
line and exception.  Whether a handler suits a strategy or an address is not decided here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from importlib import util
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.settings import near_match

if TYPE_CHECKING:
    from types import ModuleType

    from longshore.framing import Framing

__all__ = ("load_framing", "load_target", "locate")


def load_target(target: str) -> Any:
    """The handler that `file.py:Name`, `package.module:Name`, or either without a name, stands for.

    Raises:
        ConfigError: there is no such file, module or name, it cannot be imported, or which handler is meant is open.
    """
    place, name = _split(target)
    module = _load(place)
    if name:
        return _attribute(module, name, place)
    found = _handlers(module)
    if len(found) == 1:
        return found[0][1]
    if not found:
        raise ConfigError(
            f"{place} defines no handler",
            hint=f"A handler is a class with handle(), or a function of one or two arguments; or say {place}:NAME.",
        )
    choices = ", ".join(f"{place}:{each}" for each, _ in found)
    raise ConfigError(f"{place} defines {len(found)} handlers", hint=f"Say which: {choices}.")


def locate(target: str) -> str:
    """The directory whose files make up `target`, found without importing it.

    Raises:
        ConfigError: there is no such file or module.
    """
    place, _ = _split(target)
    if _is_file(place):
        _require_file(place)
        return os.path.dirname(os.path.abspath(place))
    _require_module_name(place)
    _look_here()
    spec = util.find_spec(place.partition(".")[0])
    if spec is None:
        raise _no_module(place)
    found = list(spec.submodule_search_locations or ()) or [os.path.dirname(spec.origin or "")]
    here = os.getcwd()
    # What lies here has its neighbours here too; what is installed is watched alone.
    return here if os.path.dirname(found[0]) == here or found[0] == here else found[0]


def load_framing(text: str | None) -> Framing | None:
    """The framing that `text` spells, or the user's own as `module:NAME`: a value, or a class to call.

    Raises:
        ConfigError: there is none.
    """
    if text is None:
        return None
    from longshore.framing import Framing, parse_framing
    from longshore.framing.spelling import SPELLINGS

    place, name = _split(text)
    known = sorted({spelling.partition(":")[0] for spelling in SPELLINGS})
    if not name or place in known:
        try:
            return parse_framing(text)
        except ConfigError as error:
            spelt = text.partition(":")[0]
            if not error.hint and spelt not in known:
                error.hint = near_match(spelt, known)
            raise
    try:
        found = _attribute(_load(place), name, place)
    except ConfigError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        otherwise = f"Known are {', '.join(SPELLINGS)}, or module:NAME for your own."
        raise ConfigError(f"framing {text!r}: {error}", hint=near_match(place, known, otherwise)) from error
    framing = found() if isinstance(found, type) else found
    if not isinstance(framing, Framing):
        raise ConfigError(
            f"{text} is no framing: it has no encode() and decoder()",
            hint="longshore.framing.Framing says what a framing needs.",
        )
    return framing


def _split(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if colon and place and all(part.isidentifier() for part in name.split(".")):
        return place, name
    return target, ""


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


def _load(place: str) -> ModuleType:
    if _is_file(place):
        return _load_file(place)
    _look_here()
    _require_module_name(place)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _broken(place, error) from error
        raise _no_module(place) from error
    except (Exception, SystemExit) as error:
        raise _broken(place, error) from error


def _look_here() -> None:
    """Have modules found in the current directory."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def _require_module_name(place: str) -> None:
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"{place!r} names neither a file nor a module", hint="Say app.py:Echo or package.app:Echo.")


def _no_module(place: str) -> ConfigError:
    hint = f"Did you mean {place}.py?" if os.path.exists(f"{place}.py") else "It is looked for in this directory too."
    return ConfigError(f"there is no module {place!r}", hint=hint)


def _require_file(path: str) -> None:
    if os.path.isfile(path):
        return
    what = "is a directory" if os.path.isdir(path) else "there is no such file"
    folder = os.path.dirname(path) or "."
    names = [each for each in os.listdir(folder) if each.endswith(".py")] if os.path.isdir(folder) else []
    raise ConfigError(
        f"{path}: {what}",
        hint=near_match(os.path.basename(path), names, "TARGET is app.py:Echo or package.app:Echo."),
    )


def _load_file(path: str) -> ModuleType:
    _require_file(path)
    # Its neighbours are importable, as they are for `python file.py`.
    directory = os.path.dirname(os.path.abspath(path))
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules or name in sys.stdlib_module_names:
        # A file called queue.py must not become the `queue` of everybody else.
        name = f"longshore_target_{name}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", hint="TARGET is app.py:Echo or package.app:Echo.")
    module = util.module_from_spec(spec)
    # Registered before it runs, because dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(path, error) from error
    return module


def _broken(place: str, error: BaseException) -> ConfigError:
    """The error for code that cannot be imported, naming the innermost line that is the user's own."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{_short(error.filename)}, line {error.lineno}"
        text = f"{type(error).__name__}: {error.msg}"
    else:
        lines = []
        step = error.__traceback__
        while step is not None:
            file = step.tb_frame.f_code.co_filename
            if not file.startswith("<frozen ") and not file.startswith(os.path.dirname(__file__)):
                lines.append(f"{_short(file)}, line {step.tb_lineno}")
            step = step.tb_next
        where = lines[-1] if lines else place
    return ConfigError(f"cannot import {place}: {where}: {text}", hint="--debug shows the whole traceback.")


def _short(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [each for each in vars(module) if not each.startswith("_")]
            candidates = [each for each, _ in _handlers(module)]
            otherwise = f"It defines {', '.join(f'{place}:{each}' for each in candidates)}." if candidates else ""
            match = near_match(name, candidates or names)
            raise ConfigError(f"{place} has no {name!r}", hint=match or otherwise) from None
    return found


def _handlers(module: ModuleType) -> list[tuple[str, Any]]:
    """The handlers that `module` itself defines, in the order in which they stand there."""
    return [
        (name, value) for name, value in vars(module).items() if not name.startswith("_") and _is_handler(value, module)
    ]


def _is_handler(value: Any, module: ModuleType) -> bool:
    from longshore.handlers import Handler, MessageHandler

    if isinstance(value, Handler):
        value = value.target
        return getattr(value, "__module__", None) == module.__name__
    if getattr(value, "__module__", None) != module.__name__:
        return False
    if isinstance(value, type):
        return issubclass(value, MessageHandler) or callable(getattr(value, "handle", None))
    if not inspect.isfunction(value):
        return False
    parameters = inspect.signature(value).parameters.values()
    required = [each for each in parameters if each.default is each.empty]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(required) in (1, 2) and all(each.kind in positional for each in required)
