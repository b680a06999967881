"""`longshore completion`: the script in a real bash, and what click answers to it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from longshore.addresses import SCHEMES
from longshore.settings import LOG_LEVELS, STRATEGIES

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")

#: Runs the generated function as bash does when Tab is pressed behind the words, and prints what it was offered.
PRESS_TAB = """\
eval "$(./longshore completion bash)"
compopt() { echo "compopt $1 $2"; }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_longshore_completion ./longshore
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path, command, environment):
    """What bash offers behind the words, cut as bash cuts them: `complete("longshore", "ser")`."""
    script = tmp_path / "longshore"
    words = " ".join(f"'{word}'" for word in command)
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    script.chmod(0o755)

    def press(*words):
        result = subprocess.run(
            ["bash", "--norc", "-c", PRESS_TAB, "bash", *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=15,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.split("\n")[:-1]

    return press


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], ["completion", "connect", "ctl", "doctor", "serve", "top", "unit"]),
        (["ser"], ["serve"]),
        (["serve", "a.py", "--strat"], ["--strategy"]),
        (["serve", "a.py", "--strategy", ""], list(STRATEGIES)),
        (["serve", "a.py", "--strategy", "=", "gr"], ["green"]),
        (["serve", "a.py", "--log-level", ""], list(LOG_LEVELS)),
        (["serve", "a.py", "--framing", "nets"], ["netstring"]),
        (["serve", "a.py", "--framing", "length-prefixed", ":", "v"], ["varint"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["doctor", "--js"], ["--json"]),
    ],
)
def test_commands_flags_and_values_are_offered(complete, words, offered):
    assert complete("longshore", *words) == offered


@pytest.mark.slow
def test_the_schemes_of_urls_are_offered_without_a_space_behind_them(complete):
    offered = complete("longshore", "serve", "a.py", "--bind", "")
    assert offered == ["compopt -o nospace"] * len(SCHEMES) + [f"{scheme}://" for scheme in SCHEMES]
    assert complete("longshore", "connect", "se")[1:] == ["seqpacket://"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--bind", "tcp", ":"], ["--bind", "=", "tcp", ":"], ["--bind", "tcp", "://"]])
def test_behind_a_colon_only_the_rest_of_the_url_is_offered(complete, words):
    assert complete("longshore", "serve", "a.py", *words) == ["compopt -o nospace", "//"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["serve", "ec"], "default"),
        (["serve", "a.py", "--certfile", ""], "default"),
        (["serve", "a.py", "--bind", "tcp", "://127.0.0.1", ":", "0", "--config", ""], "default"),
        (["serve", "a.py", "--reload-dir", ""], "dirnames"),
        (["doctor", ""], "default"),
    ],
)
def test_files_and_directories_are_left_to_bash(complete, words, kind):
    assert complete("longshore", *words) == [f"compopt -o {kind}", ""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script_on_standard_output(run, shell):
    result = run("completion", shell)
    assert (result.returncode, result.stderr) == (0, b"")
    assert f"_LONGSHORE_COMPLETE={shell}_complete".encode() in result.stdout


def test_another_shell_is_told_which_there_are(run):
    result = run("completion", "csh")
    assert result.returncode == 2
    assert b"'csh' is not one of 'bash', 'zsh', 'fish'" in result.stderr
