"""What a shell completes after `longshore`: the script for the shell, and the values of flags and arguments.

Besides `commands.py` the only place that knows click, whose protocol with the shells this is: the script calls
`longshore` with `_LONGSHORE_COMPLETE` set and no arguments, and click answers from its table of commands.

The script for bash is our own.  Bash cuts words at colons, so click's would never complete a URL, and it would put
a space behind `tcp://`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.shell_completion import BashComplete, CompletionItem, ShellComplete, get_completion_class

from longshore.addresses import SCHEMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import click

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

__all__ = ("SHELLS", "directories", "files", "one_of", "script", "urls")

SHELLS = ("bash", "zsh", "fish")

#: The variable that click looks at, by the name of the command.
_VARIABLE = "_LONGSHORE_COMPLETE"

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response kind value word before="" index
    local -a words=()
    # Bash has cut the words at colons and equals signs; a URL is one word again, and so is a flag with its value.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word="${COMP_WORDS[index]}"
        if ((index)) && [[ $word == [:=]* || $before == *: || $before == "=" ]]; then
            words[-1]+="$word"
        else
            words+=("$word")
        fi
        before="$word"
    done
    # What stands before the last colon is not replaced, so it must not come again.
    word="${words[-1]}"
    [[ $word == -*=* ]] && word="${word#*=}"
    word="${word%%"${word##*:}"}"
    COMPREPLY=()
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
    while IFS=',' read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$word"}")
                [[ $value == *[:/] ]] && compopt -o nospace
                ;;
        esac
    done <<< "$response"
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template = _BASH


def script(shell: str, command: click.Command) -> str:
    """The text that `shell` (one of `SHELLS`) runs to learn how to complete `command`."""
    known: type[ShellComplete] | None = _Bash if shell == "bash" else get_completion_class(shell)
    assert known is not None
    return known(command, {}, "longshore", _VARIABLE).source()


def one_of(values: Sequence[str]) -> Completer:
    """Completes one of `values`."""
    return lambda _context, _parameter, begun: [CompletionItem(each) for each in values if each.startswith(begun)]


#: Completes the scheme of a URL; the rest is anybody's.
urls = one_of([f"{scheme}://" for scheme in SCHEMES])


def files(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes a file, which the shell does by itself."""
    return [CompletionItem(begun, type="file")]


def directories(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes a directory, which the shell does by itself."""
    return [CompletionItem(begun, type="dir")]
