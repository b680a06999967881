"""Where options come from: command line, environment, file, and the code's defaults, in this order.

The only place that reads `LONGSHORE_*` variables and `longshore.toml`.  Options are declared on the frozen
dataclasses of `config.py` and on `Config` below, and nowhere else: their names, types and help are derived
here, once, and the command line derives its flags from the same table.

An embedded `Server` never comes here; it has what its caller passed.  Whether a value is good is the
dataclass' own decision, this file only says where a bad one came from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from longshore.config import TLS, Limits, Proxy, Timeouts, Workers
from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ("FILE", "Config", "Option", "near_match", "options")

#: The file that is read when it lies in the current directory.
FILE = "longshore.toml"

STRATEGIES = ("reactor", "threads", "green", "async", "processes", "inline")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _declare(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `longshore serve` can be told, from wherever it was told.

    Example:
        >>> config = Config.load()
        >>> serve(echo, *config.bind, strategy=config.strategy, limits=config.limits)  # doctest: +SKIP
    """

    bind: tuple[str, ...] = _declare((), "an address to serve on, as a URL; may be given several times")
    strategy: str | None = _declare(None, "how handlers run; by default what fits the handler", STRATEGIES)
    framing: str | None = _declare(None, "how the stream is cut: lines, length-prefixed:4, json, ... or module:NAME")
    workers: int | Literal["auto"] = _declare(1, "worker processes; auto: one for each CPU")
    pool: str | None = _declare(None, "what server.pool runs on: a number of processes, auto, or dask://host:port")
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    tls: TLS | None = None
    proxy: Proxy | None = None
    prefork: Workers = field(default_factory=Workers)
    metrics: str | None = _declare(None, "an address for /metrics, /ready and /live, such as http://127.0.0.1:9100")
    control: str | None = _declare(None, "the file of a control socket for longshore ctl; default: where it looks")
    log_format: str = _declare("text", "one readable line per event, or one JSON object", LOG_FORMATS)
    log_file: str | None = _declare(None, "a file for all that follows the first line; USR1 opens it anew")
    log_level: str = _declare("info", "the least level that is logged", LOG_LEVELS)

    def __post_init__(self) -> None:
        for item in fields(self):
            choices = item.metadata.get("choices", ())
            value = getattr(self, item.name)
            if choices and value is not None and value not in choices:
                raise ConfigError(
                    f"{item.name.replace('_', ' ')} {value!r}: must be one of {', '.join(choices)}",
                    hint=near_match(str(value), choices),
                )
        if self.workers != "auto" and (isinstance(self.workers, bool) or self.workers < 1):
            raise ConfigError(f"workers {self.workers!r}: must be at least 1, or auto")

    @property
    def is_supervised(self) -> bool:
        """Whether workers are asked for: more than one, or an option that only a supervisor can fulfil."""
        return self.workers != 1 or self.prefork != Workers() or self.is_watched

    @property
    def is_watched(self) -> bool:
        """Whether there is to be a control process."""
        return self.metrics is not None or self.control is not None

    @classmethod
    def load(
        cls,
        path: str | None = None,
        environ: Mapping[str, str] = os.environ,
        arguments: Mapping[str, Sequence[str]] | None = None,
    ) -> Config:
        """Read file and environment, and put `arguments` above both.

        Args:
            path: the file; None means `longshore.toml` in the current directory, if there is one.
            environ: the environment whose `LONGSHORE_*` variables count.
            arguments: what the command line said, as texts by `Option.name`.

        Raises:
            ConfigError: a file that cannot be read, an unknown key in it, or a value that cannot be used;
                the message says where it stands.
        """
        given: dict[str, _Given] = {}
        for option, value in _from_file(path):
            given[option.name] = value
        for option in options():
            # An empty variable is how a shell spells "unset", so it does not count.
            text = environ.get(option.variable, "")
            if text:
                texts = text.split() if option.kind == "tuple" else [text]
                given[option.name] = _Given(f"{option.variable}={text}", option, option.parse(texts, option.variable))
        for option in options():
            texts = list((arguments or {}).get(option.name, ()))
            if texts:
                source = f"{option.flag} {' '.join(texts)}"
                given[option.name] = _Given(source, option, option.parse(texts, option.flag))
        return _build(given.values())


class Option(NamedTuple):
    """One option on all its surfaces, derived from a field of a dataclass."""

    name: str
    """`idle_timeout`: the flag `--idle-timeout`, the variable `LONGSHORE_IDLE_TIMEOUT`."""
    section: str
    """Its table in `longshore.toml`: serve, prefork, limits, timeouts, tls or proxy."""
    key: str
    """Its key in that table, which is the field's name."""
    kind: str
    """int, float, str, bytes or tuple (of texts)."""
    optional: bool
    """Whether "none" is a value."""
    default: Any
    help: str
    choices: tuple[str, ...]
    word: str = ""
    """A word that stands for a value beside those of its kind."""

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The spelling in the environment."""
        return "LONGSHORE_" + self.name.upper()

    def parse(self, texts: Sequence[str], where: str) -> Any:
        """The value that `texts` spell; but for a tuple only the last one counts.

        Raises:
            ConfigError: they spell none; `where` is the place that the message names.
        """
        if self.kind == "tuple":
            return tuple(texts)
        text = texts[-1]
        if self.optional and text.strip().lower() == "none":
            return None
        if self.word and text.strip().lower() == self.word:
            return self.word
        read: Callable[[str], Any] = _READ[self.kind]
        try:
            return read(text)
        except ValueError as error:
            alternative = ", or none" if self.optional else f", or {self.word}" if self.word else ""
            raise ConfigError(
                f"{where}: {text!r} is not {_NAMED[self.kind]}{alternative}", hint=f"{self.flag}: {self.help}."
            ) from error

    def accept(self, value: object, where: str) -> Any:
        """The value that a file's `value` stands for.

        Raises:
            ConfigError: it is of another type; `where` is the place that the message names.
        """
        if self.optional and value == "none":
            return None
        if self.kind == "tuple":
            if isinstance(value, str):
                return (value,)
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)
        elif self.kind == "bytes":
            if isinstance(value, str):
                return value.encode()
        elif self.kind == "str":
            if isinstance(value, str):
                return value
        elif isinstance(value, bool):
            pass
        elif isinstance(value, (int, float) if self.kind == "float" else int):
            return value
        if self.word and value == self.word:
            return value
        alternative = ', or "none"' if self.optional else f', or "{self.word}"' if self.word else ""
        raise ConfigError(f"{where} = {value!r}: must be {_NAMED[self.kind]}{alternative}", hint=f"{self.help}.")


def _read_bytes(text: str) -> bytes:
    # Escapes are read, so that a shell can spell a line end; all else stays as its UTF-8 bytes, because this
    # codec takes bytes it does not know for Latin-1, and that turns them back into themselves.
    return text.encode().decode("unicode_escape").encode("latin-1")


_READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bytes": _read_bytes,
}
_NAMED = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bytes": "a text of bytes",
    "tuple": "a list of texts",
}

#: Names that say too little, or something else, without their table's.
_SPELLED = {
    ("tls", "minimum"): "tls_minimum",
    ("timeouts", "min_rate"): "min_rate",
    ("prefork", "max_age"): "worker_max_age",
    ("prefork", "max_connections"): "worker_max_connections",
    ("prefork", "max_memory"): "worker_max_memory",
    ("prefork", "heartbeat"): "worker_heartbeat",
    ("proxy", "trusted"): "proxy_trusted",
    ("proxy", "timeout"): "proxy_timeout",
    ("proxy", "max_header"): "proxy_max_header",
}
#: How many workers there are is the server's option of that name; how they vary is for programs.
_ELSEWHERE = {("prefork", "count"), ("prefork", "jitter")}

_CHOICES = {("limits", "overflow"): Limits.OVERFLOWS, ("tls", "minimum"): TLS.VERSIONS}

_options: tuple[Option, ...] = ()


def options() -> tuple[Option, ...]:
    """All options, in the order in which they are shown."""
    global _options
    if not _options:
        _options = tuple(option for section, owner in _SECTIONS for option in _derive(section, owner))
    return _options


_SECTIONS: tuple[tuple[str, Any], ...] = (
    ("serve", Config),
    ("prefork", Workers),
    ("limits", Limits),
    ("timeouts", Timeouts),
    ("tls", TLS),
    ("proxy", Proxy),
)


def _derive(section: str, owner: Any) -> Iterator[Option]:
    for item in fields(owner):
        # Annotations are texts here (PEP 563).  What no text can spell, such as an SSLContext, is no option.
        parts = str(item.type).split(" | ")
        kind = "tuple" if parts[0] == "tuple[str, ...]" else parts[0]
        word = "auto" if "Literal['auto']" in parts else ""
        if (section, item.name) in _ELSEWHERE or kind not in _NAMED or item.name.startswith("_"):
            continue
        name = _SPELLED.get((section, item.name)) or (f"{item.name}_timeout" if section == "timeouts" else item.name)
        choices = item.metadata.get("choices") or _CHOICES.get((section, item.name), ())
        yield Option(
            name, section, item.name, kind, "None" in parts, item.default, item.metadata["help"], choices, word
        )


class _Given(NamedTuple):
    source: str
    option: Option
    value: Any


def _from_file(path: str | None) -> Iterator[tuple[Option, _Given]]:
    if path is None and not os.path.exists(FILE):
        return
    file = path or FILE
    import tomllib

    try:
        with open(file, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint="--config names the file to read.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    known = {(option.section, option.key): option for option in options()}
    sections = tuple(dict.fromkeys(section for section, _ in known))
    for section, table in document.items():
        if section not in sections:
            raise ConfigError(
                f"{file}: there is no table [{section}]",
                hint=near_match(section, sections, f"The tables are {', '.join(f'[{name}]' for name in sections)}."),
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} must be a table", hint=f"Write [{section}] on a line of its own.")
        for key, value in table.items():
            option = known.get((section, key))
            if option is None:
                keys = tuple(name for place, name in known if place == section)
                raise ConfigError(
                    f"{file}: [{section}] has no key {key!r}", hint=near_match(key, keys, f"It has {', '.join(keys)}.")
                )
            where = f"{file}: [{section}] {key}"
            yield option, _Given(f"{where} = {value!r}", option, option.accept(value, where))


def _build(given: Iterable[_Given]) -> Config:
    given = list(given)

    def make(section: str, owner: Callable[..., Any]) -> Any:
        mine = [item for item in given if item.option.section == section]
        try:
            return owner(**{item.option.key: item.value for item in mine})
        except ConfigError as error:
            # The dataclass says what is wrong; the one value that it refuses on its own says where that stands.
            for item in mine:
                try:
                    owner(**{item.option.key: item.value})
                except ConfigError as alone:
                    # What only lacks another value is not to blame.
                    if str(alone) == str(error):
                        raise ConfigError(f"{item.source}: {error}", hint=error.hint) from error
            raise

    tables: dict[str, Any] = {
        "limits": make("limits", Limits),
        "timeouts": make("timeouts", Timeouts),
        "prefork": make("prefork", Workers),
    }
    for section, owner in (("tls", TLS), ("proxy", Proxy)):
        # None where nothing of it is given.
        if any(item.option.section == section for item in given):
            tables[section] = make(section, owner)
    return make("serve", lambda **own: Config(**own, **tables))  # type: ignore[no-any-return]


def near_match(word: str, known: Sequence[str], otherwise: str = "") -> str:
    """A question that names the one of `known` which `word` may have meant, else `otherwise`."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {found[0]}?" if found else otherwise
