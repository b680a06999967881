"""The doctor: what a `socketserver` program will suffer from, and what the machine grants a server.

Two halves that know nothing of each other.  `diagnose` is pure: a program's source in, findings out.  `vitals.py`
asks the system.  Neither prints; that is the command line's part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longshore.doctor.complaints import OF_A_PROGRAM, OF_A_SERVER, Finding
from longshore.doctor.program import Program
from longshore.doctor.servers import find_servers

__all__ = ("Diagnosis", "Finding", "diagnose")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found in one program."""

    servers: tuple[str, ...]
    """Every server class in use; empty if the program has nothing to do with `socketserver`."""
    findings: tuple[Finding, ...]
    """In the order of their lines."""

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What is to be mended."""
        return tuple(each for each in self.findings if not each.fixed and not each.note)


def diagnose(source: str) -> Diagnosis:
    r"""Read a program, without importing or running it, and say what it will suffer from.

    Raises:
        ConfigError: `source` is no Python that this interpreter can read.

    Example:
        >>> text = "import socketserver as ss\nclass S(ss.TCPServer, ss.ThreadingMixIn): pass\n"
        >>> [finding.rule for finding in diagnose(text).faults]
        ['backlog', 'mixin-order', 'no-tls', 'unbounded-threads']
    """
    program = Program(source)
    servers = find_servers(program)
    found = {finding for server in servers for rule in OF_A_SERVER for finding in rule(server)}
    if servers:
        found |= {finding for rule in OF_A_PROGRAM for finding in rule(program, servers)}
    told = (replace(each, fix="") if each.fixed else each for each in found)
    ordered = sorted(told, key=lambda each: (each.line, each.rule, each.subject))
    return Diagnosis(tuple(server.title for server in servers), tuple(ordered))
