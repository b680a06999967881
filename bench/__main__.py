"""`python -m bench`: run, show, draw; soak and fairness."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import fairness as fair
from bench import results
from bench.claims import judge
from bench.contenders import CONTENDERS, Contender
from bench.machine import describe
from bench.processes import Cores, Failed, raise_descriptor_limit
from bench.programs import Programs, Unavailable, build
from bench.rounds import LONG, QUICK, Rounds
from bench.scenarios import SCENARIOS, find
from bench.soak import ALLOWED, soak
from bench.tables import markdown, print_entry, print_verdicts

console = Console()
if not console.is_terminal:
    # A file has no width; tables are not to be folded at 80 columns for it.
    console.width = 120


@click.group()
def main() -> None:
    """Measure Longshore beside its peers and beside the machine's limit."""


@main.command()
@click.option("--quick", is_flag=True, help="Fewer scenarios and rounds: under two minutes.")
@click.option("--only", default="", help="Scenarios by key, with commas between.")
@click.option("--check", is_flag=True, help="Say which claims hold; the exit status is 1 if one does not.")
def run(quick: bool, only: str, check: bool) -> None:
    """Run scenarios, print their tables, write results and pictures."""
    keys = tuple(filter(None, only.split(",")))
    try:
        scenarios = find(keys, quick)
    except KeyError as error:
        known = ", ".join(scenario.key for scenario in SCENARIOS)
        raise click.BadParameter(f"{error} is no scenario; there are {known}") from None
    programs, cores = _prepare()
    begin = describe()
    with _progress() as (plan, step), TemporaryDirectory(prefix="longshore-bench-") as temporary:
        rounds = Rounds(programs, cores, QUICK if quick else LONG, step, Path(temporary))
        plan(sum(map(rounds.turns_of, scenarios)))
        entries = {}
        for scenario in scenarios:
            entries[scenario.key] = {**rounds.run(scenario), "machine": begin}
            print_entry(console, entries[scenario.key])
    folder = results.FOLDER / results.reactor_of(entries)
    if quick:
        folder = folder / "quick"
    run = results.merge(results.read(folder), {"scenarios": entries})
    console.print(f"Written: {results.write(run, folder)}, and the pictures beside it", highlight=False)
    _draw(run, folder)
    if check:
        _check(run)


@main.command()
@click.argument("reactor", default="native")
def check(reactor: str) -> None:
    """Say which claims the last run with this reactor bears out."""
    _check(_last(reactor))


@main.command()
@click.argument("reactor", default="native")
def table(reactor: str) -> None:
    """Print the last run with this reactor as Markdown."""
    click.echo(markdown(_in_order(_last(reactor)["scenarios"])))


@main.command(name="soak")
@click.option("--quick", is_flag=True, help="A twentieth of it.")
@click.option("--server", "names", multiple=True, default=("longshore reactor",), help="Whom; may be repeated.")
def soak_command(quick: bool, names: tuple[str, ...]) -> None:
    """A million short connections and ten million messages: does memory grow?"""
    programs, cores = _prepare()
    with _progress() as (plan, step):
        plan(22 * len(names))
        found = [soak(programs, cores, _named(name), 0.05 if quick else 1.0, step) for name in names]
    for each in found:
        verdict = "holds" if each.holds else "does not hold"
        console.print(
            f"{each.name} ({each.reactor} reactor): {each.growth / 1e6:+.2f} MB after {each.connections:,} connections "
            f"and {each.messages:,} messages; less than {ALLOWED / 1e6:g} MB is allowed: {verdict}",
            highlight=False,
        )
    sys.exit(not all(each.holds for each in found))


@main.command()
@click.option("--server", "names", multiple=True, default=("longshore reactor",), help="Whom; may be repeated.")
def fairness(names: tuple[str, ...]) -> None:
    """Do flooding clients delay another client's answer, or a timer?"""
    programs, cores = _prepare()
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with _progress() as (plan, step):
        plan(5 * len(names) * len(fair.FLOODS))
        for name in names:
            for flood in fair.FLOODS:
                delays = fair.measure(programs, cores, _named(name), flood, step)
                found.setdefault(name, {})[flood.title] = fair.typical(delays)
    all_hold = True
    for name, floods in found.items():
        quiet = floods[fair.FLOODS[0].title]
        for title, flooded in floods.items():
            holds = fair.is_fair(flooded, quiet)
            all_hold = all_hold and holds
            answer, timer = (seconds * 1e3 for seconds in flooded)
            verdict = "holds" if holds else "does not hold"
            console.print(
                f"{name}, {title}: answers at most {answer:.1f} ms late, timer {timer:.1f} ms; "
                f"{fair.ALLOWED * 1e3:g} ms more than without a flood are allowed: {verdict}",
                highlight=False,
            )
    sys.exit(not all_hold)


def _prepare() -> tuple[Programs, Cores]:
    try:
        programs = build()
    except Unavailable as error:
        console.print(f"The benchmark is skipped: {error}", highlight=False)
        sys.exit(0)
    raise_descriptor_limit()
    cores = Cores()
    if not cores.are_two:
        console.print("Only one core: server and load share it, and latencies mean little.", style="yellow")
    return programs, cores


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar that is drawn between turns only, so that drawing takes no time from what is measured."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=None, start=True)
        is_begun = False

        def plan(total: int) -> None:
            progress.update(task, total=total)

        def step(text: str) -> None:
            nonlocal is_begun
            progress.update(task, description=text, advance=1 if is_begun else 0)
            progress.refresh()
            is_begun = True

        try:
            yield plan, step
        except Failed as error:
            raise click.ClickException(str(error)) from None


def _named(name: str) -> Contender:
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise click.BadParameter(f"{name!r} is no server; there are {', '.join(each.name for each in CONTENDERS)}")


def _last(reactor: str) -> dict:
    run = results.read(results.FOLDER / reactor)
    if not run["scenarios"]:
        raise click.ClickException(f"there is no run with the {reactor} reactor yet: make bench")
    return run


def _in_order(entries: dict) -> list:
    return [entries[scenario.key] for scenario in SCENARIOS if scenario.key in entries]


def _draw(run: dict, folder: Path) -> None:
    from bench.pictures import draw

    for key, entry in run["scenarios"].items():
        draw(entry, folder / f"{key}.svg")


def _check(run: dict) -> None:
    verdicts = judge(run)
    print_verdicts(console, verdicts)
    measured = [verdict for verdict in verdicts if verdict.holds is not None]
    failed = [verdict for verdict in measured if not verdict.holds]
    console.print(f"{len(measured) - len(failed)} of {len(measured)} measured claims hold.")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
