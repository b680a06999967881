"""`longshore doctor`: what this machine grants a server, or what a `socketserver` program will suffer from.

The only place that prints what `longshore.doctor` finds, for people on a terminal or in a pipe, and as JSON for
machines.  With a file it ends as linters do: 0 if there is nothing to mend, 1 if there is.
"""

from __future__ import annotations

import io
import os
import sys
import tokenize
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from longshore.cli import FAILURE
from longshore.errors import ConfigError
from longshore.settings import near_match

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshore.doctor import Diagnosis, Finding
    from longshore.doctor.vitals import Vital

__all__ = ("DoctorArguments", "doctor")


class DoctorArguments(NamedTuple):
    """What stands on a command line of `longshore doctor`."""

    file: str | None = None
    as_json: bool = False


def doctor(arguments: DoctorArguments) -> int:
    """Report; the exit status.

    Raises:
        ConfigError: the file cannot be read, or is no Python.
    """
    if arguments.file is None:
        _report_machine(arguments.as_json)
        return 0
    return _report_program(arguments.file, arguments.as_json)


# -- the machine -----------------------------------------------------------------------------------------


def _report_machine(as_json: bool) -> None:
    from longshore.doctor.vitals import Vital, vitals
    from longshore.settings import Config

    try:
        limits, trouble = Config.load().limits, None
    except ConfigError as error:
        limits, trouble = None, Vital("configuration", "cannot be used", "look", str(error), error.hint)
    found = [*([trouble] if trouble else []), *vitals(limits)]
    if as_json:
        _print_json({"vitals": [asdict(vital) for vital in found]})
        return
    width = max(len(vital.name) for vital in found)
    for vital in found:
        for line in _vital_lines(vital, width):
            print(line)
    looks = sum(vital.verdict == "look" for vital in found)
    unknown = sum(vital.verdict == "unknown" for vital in found)
    rest = f"; {unknown} cannot be read" if unknown else ""
    print()
    print(f"{_count(looks, 'thing')} to look at{rest}." if looks else f"Nothing to look at{rest}.")


def _vital_lines(vital: Vital, width: int) -> Iterator[str]:
    verdict = {"ok": "ok", "look": _paint("look", "33"), "unknown": _paint("?", "2")}[vital.verdict]
    padding = " " * (4 - len({"unknown": "?"}.get(vital.verdict, vital.verdict)))
    note = f"  ({vital.note})" if vital.note else ""
    yield f"{verdict}{padding}  {vital.name:{width}}  {vital.value}{note}"
    if vital.fix:
        yield f"{'':6}{'':{width}}  fix: {vital.fix}"


# -- a program -------------------------------------------------------------------------------------------


def _report_program(path: str, as_json: bool) -> int:
    from longshore.doctor import diagnose

    source = _read(path)
    try:
        diagnosis = diagnose(source)
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}", hint="The doctor reads Python source of this version.") from error
    if as_json:
        findings = [asdict(finding) for finding in diagnosis.findings]
        _print_json({"file": path, "servers": list(diagnosis.servers), "findings": findings})
    else:
        _print_diagnosis(path, diagnosis)
    return FAILURE if diagnosis.faults else 0


def _read(path: str) -> str:
    """The text of a Python file, in the encoding that it names.

    Raises:
        ConfigError: it is not there, not readable, or no text.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a directory", hint="Name a Python file in it.")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        name, colon, _ = path.rpartition(":")
        folder = os.path.dirname(path) or "."
        files = [each for each in os.listdir(folder) if each.endswith(".py")] if os.path.isdir(folder) else []
        hint = near_match(os.path.basename(path), files, "Name a Python file, such as server.py.")
        if colon and os.path.isfile(name):
            hint = f"Did you mean {name}? The doctor reads a whole file."
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: {why}", hint=hint) from error
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise ConfigError(f"{path} is not text: {error}", hint="Name a Python file, such as server.py.") from error
    if "\0" in text:
        raise ConfigError(f"{path} is not text: it has NUL bytes", hint="Name a Python file, such as server.py.")
    return text.removeprefix("\ufeff")


def _print_diagnosis(path: str, diagnosis: Diagnosis) -> None:
    if not diagnosis.servers:
        print(f"{path}: nothing of socketserver in it, so nothing to say.")
        return
    shown = [each for each in diagnosis.findings if not each.fixed]
    for finding in shown:
        for line in _finding_lines(path, finding):
            print(line)
    fixed = [each for each in diagnosis.findings if each.fixed]
    if fixed:
        print("\n" * bool(shown) + "Already mended by longshore.socketserver:")
        for finding in fixed:
            print(f"{path}:{finding.line}: {finding.rule}: {finding.subject}")
    if diagnosis.findings:
        print()
    print(_summary(path, diagnosis))


def _finding_lines(path: str, finding: Finding) -> Iterator[str]:
    rule = finding.rule if finding.note else _paint(finding.rule, "33")
    yield f"{path}:{finding.line}: {rule}: {finding.subject}: {finding.message}"
    yield f"    {'note' if finding.note else 'fix'}: {finding.fix}"


def _summary(path: str, diagnosis: Diagnosis) -> str:
    servers = f"{_count(len(diagnosis.servers), 'server')} in {path}"
    if not diagnosis.faults:
        return f"{servers}, nothing to mend."
    summary = f"{servers}, {_count(len(diagnosis.faults), 'thing')} to mend"
    # One changed import often mends many, so that is worth a sentence.
    moves = [each.fix.partition("  ")[0] for each in diagnosis.faults if each.fix.startswith("change line ")]
    if len(moves) < 2:
        return f"{summary}."
    best = max(moves, key=moves.count)
    return f"{summary}.  For {moves.count(best)} of them {best}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def _paint(text: str, colour: str) -> str:
    """The text in a colour of ECMA-48, where a person looks at a terminal that has colours."""
    plain = not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"
