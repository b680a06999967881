"""`longshore top`: a running server live in the terminal: workers, connections, and how fast it all goes.

The only file that imports textual (the extra `longshore[top]`).  It asks over the control socket, as `longshore ctl`
does, on a thread; what cannot be asked any more is said in the last line, and asked again.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Input, Sparkline, Static

from longshore.cli.ctl import age, size
from longshore.control.census import SORTS
from longshore.control.client import Commanded
from longshore.errors import ConfigError, LongshoreError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Top", "top")

#: Points of a sparkline.
HISTORY = 60
#: Connections that are asked for.
ROWS = 200
#: What is shown of each worker, and how.
WORKERS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("worker", lambda each: str(each["worker"])),
    ("pid", lambda each: str(each["pid"])),
    ("gen", lambda each: str(each["generation"])),
    ("state", lambda each: str(each["state"])),
    ("age", lambda each: age(each.get("age"))),
    ("conns", lambda each: size(each.get("connections"))),
    ("accepted", lambda each: size(each.get("accepted"))),
    ("in", lambda each: size(each.get("received"))),
    ("out", lambda each: size(each.get("sent"))),
    ("messages", lambda each: size(each.get("messages"))),
    ("failed", lambda each: size(each.get("failed"))),
)
CONNECTIONS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("id", lambda each: str(each["id"])),
    ("peer", lambda each: str(each["peer"])),
    ("state", lambda each: str(each["state"])),
    ("age", lambda each: age(each["age"])),
    ("idle", lambda each: age(each["idle"])),
    ("in", lambda each: size(each["received"])),
    ("out", lambda each: size(each["sent"])),
    ("pending", lambda each: size(each["pending"])),
    ("messages", lambda each: size(each["messages"])),
    ("handler", lambda each: str(each["handler"])),
)
#: What the sparklines show: the title, and the counters of a worker whose sum it is.
RATES = (
    ("connections/s", "accepted"),
    ("messages/s", "messages"),
    ("bytes in/s", "received"),
    ("bytes out/s", "sent"),
)
#: How a state looks.
STYLES = {
    "serving": "green",
    "waiting": "dim",
    "active": "bold green",
    "paused": "yellow",
    "draining": "yellow",
    "closing": "yellow",
    "opening": "cyan",
    "starting": "cyan",
    "silent": "bold red",
}


class Rate:
    """How fast something grows, by the figures of workers that come and go."""

    def __init__(self) -> None:
        self.history: deque[float] = deque([0.0] * HISTORY, maxlen=HISTORY)
        self._seen: dict[int, int] = {}

    def saw(self, counts: dict[int, int], seconds: float) -> None:
        """`counts` (by process) are the figures now, `seconds` after the last ones.

        A process that was not there before counts from what it has at first sight, so that nothing leaps.
        """
        grown = sum(count - self._seen.get(pid, count) for pid, count in counts.items())
        self._seen = counts
        if seconds > 0:
            self.history.append(max(0, grown) / seconds)


class Top(App[None]):
    """The screen.

    Args:
        path: the control socket.
        interval: seconds between two looks.
    """

    TITLE = "longshore top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; background: $primary; color: $text; padding: 0 1; }
    #rates { height: 4; padding: 0 1; }
    .rate { width: 1fr; height: 4; padding: 0 1; }
    .rate Sparkline { height: 2; margin: 0; }
    #workers { height: auto; max-height: 40%; }
    #connections { height: 1fr; }
    #filter { display: none; height: 3; }
    #filter.shown { display: block; }
    #note { height: 1; padding: 0 1; color: $text-muted; }
    """
    BINDINGS: ClassVar = [
        Binding("s", "sort", "Sort by the next"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter peers", key_display="/"),
        Binding("p", "pause", "Stop looking"),
        Binding("k", "kill", "End connection"),
        Binding("q", "quit", "Quit"),
        Binding("escape", "clear", "No filter", show=False),
    ]

    def __init__(self, path: str | None = None, interval: float = 1.0) -> None:
        super().__init__()
        self._path = path
        self._interval = interval
        self._server: Commanded | None = None
        self._rates = {name: Rate() for _, name in RATES}
        self._looked = 0.0
        self._looking = True
        self._asking = self._again = False
        self.sort_by = SORTS[0]
        self.ascending = False
        self.peers = ""

    def compose(self) -> ComposeResult:
        """The head, the rates, both tables, the filter, a note, and the keys."""
        yield Static(id="head")
        with Horizontal(id="rates"):
            for title, name in RATES:
                with Vertical(classes="rate"):
                    yield Static(title, id=f"rate-{name}")
                    yield Sparkline([0.0] * HISTORY, id=f"line-{name}", summary_function=max)
        yield DataTable(id="workers", show_cursor=False)
        yield DataTable(id="connections", cursor_type="row")
        yield Input(placeholder="part of a peer's address", id="filter")
        yield Static(id="note")
        yield Footer()

    def on_mount(self) -> None:
        """Name the columns, and look."""
        for name, columns in (("workers", WORKERS), ("connections", CONNECTIONS)):
            shown = self.query_one(f"#{name}", DataTable)
            for title, _ in columns:
                shown.add_column(title, key=title)
        self.query_one("#connections").focus()
        self._head("looking ...")
        self._look()
        self.set_interval(self._interval, self._look)

    # -- asking ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        # One connection carries one question at a time; a key that comes meanwhile asks once more behind it.
        if self._asking:
            self._again = True
        elif self._looking:
            self._asking = True
            self.run_worker(self._ask, thread=True, exit_on_error=False)

    def _asked(self) -> None:
        self._asking = False
        if self._again:
            self._again = False
            self._look()

    def _ask(self) -> None:
        """On a thread: ask, then have it shown."""
        try:
            if self._server is None:
                self._server = Commanded(self._path, timeout=10)
            status = self._server.ask("status")
            found = self._server.ask("connections", peer=self.peers, sort=self.sort_by, limit=ROWS)
        except (LongshoreError, OSError) as error:
            if self._server is not None:
                self._server.close()
                self._server = None
            self.call_from_thread(self._lost, str(error))
            return
        self.call_from_thread(self._show, status, found)

    def _lost(self, why: str) -> None:
        self._head("lost")
        self._note(f"{why}; asking again")
        self._asked()

    # -- showing ---------------------------------------------------------------------------------------

    def _show(self, status: dict[str, Any], found: dict[str, Any]) -> None:
        workers = status["workers"]
        now = time.monotonic()
        seconds, self._looked = (now - self._looked if self._looked else 0.0), now
        for title, name in RATES:
            rate = self._rates[name]
            rate.saw({each["pid"]: each[name] for each in workers if name in each}, seconds)
            self.query_one(f"#line-{name}", Sparkline).data = list(rate.history)
            self.query_one(f"#rate-{name}", Static).update(f"{title}  {size(rate.history[-1])}")
        rows = found["connections"]
        if self.ascending:
            rows = rows[::-1]
        _fill(self.query_one("#workers", DataTable), WORKERS, workers, "worker")
        _fill(self.query_one("#connections", DataTable), CONNECTIONS, rows, "id")
        state = f"{status['state']}{', paused' if status['paused'] else ''}"
        handlers = ", ".join(sorted({each["handler"] for each in workers if "handler" in each}))
        addresses: list[str] = next((each["addresses"] for each in workers if each.get("addresses")), [])
        self._head(f"{handlers} on {' and '.join(addresses)}   {state}   {size(found['total'])} connections")
        order = f"by {self.sort_by}, the {'least' if self.ascending else 'greatest'} first"
        only = f"; only peers with {self.peers!r}" if self.peers else ""
        silent = f"; no answer from worker {', '.join(map(str, status['silent']))}" if status["silent"] else ""
        self._note(f"{len(rows)} of {found['total']} connections {order}{only}{silent}")
        self._asked()

    def _head(self, text: str) -> None:
        self.query_one("#head", Static).update(Text(f"longshore top   {text}"))

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(Text(text))

    # -- keys ------------------------------------------------------------------------------------------

    def action_sort(self) -> None:
        """Sort by the next of `SORTS`."""
        self.sort_by = SORTS[(SORTS.index(self.sort_by) + 1) % len(SORTS)]
        self._look()

    def action_reverse(self) -> None:
        """The least of what was asked for first, or the greatest."""
        self.ascending = not self.ascending
        self._look()

    def action_filter(self) -> None:
        """Let a part of an address be typed."""
        field = self.query_one("#filter", Input)
        field.add_class("shown")
        field.focus()

    def action_clear(self) -> None:
        """Show all peers."""
        self.query_one("#filter", Input).value = ""
        self._filtered("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The filter is typed."""
        self._filtered(event.value)

    def _filtered(self, text: str) -> None:
        self.peers = text.strip()
        self.query_one("#filter").remove_class("shown")
        self.query_one("#connections").focus()
        self._look()

    def action_pause(self) -> None:
        """Stand still, to read; or go on."""
        self._looking = not self._looking
        self._note("standing still; p goes on" if not self._looking else "looking again")
        self._look()

    def action_kill(self) -> None:
        """End the connection under the cursor."""
        shown = self.query_one("#connections", DataTable)
        if shown.row_count:
            key = shown.coordinate_to_cell_key(shown.cursor_coordinate).row_key.value
            self.run_worker(lambda: self._cut(str(key)), thread=True, exit_on_error=False)

    def _cut(self, connection: str) -> None:
        try:
            with Commanded(self._path, timeout=10) as server:
                peer = server.ask("cut", connection=connection)["peer"]
            said = f"{peer} is cut"
        except (LongshoreError, OSError) as error:
            said = str(error)
        self.call_from_thread(self.notify, said)

    def on_unmount(self) -> None:
        """Ask no more."""
        if self._server is not None:
            self._server.close()


def _fill(
    shown: DataTable[Any],
    columns: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...],
    rows: list[dict[str, Any]],
    key: str,
) -> None:
    """Have a table show `rows`, with the cursor on the row that it was on."""
    at = shown.coordinate_to_cell_key(shown.cursor_coordinate).row_key.value if shown.row_count else None
    scroll = shown.scroll_y
    shown.clear()
    for number, row in enumerate(rows):
        cells = [(title, make(row)) for title, make in columns]
        shown.add_row(
            *(Text(text, STYLES.get(text, "") if title == "state" else "") for title, text in cells), key=str(row[key])
        )
        if str(row[key]) == at:
            shown.move_cursor(row=number, animate=False)
    shown.scroll_to(y=scroll, animate=False)


def top(path: str | None, interval: float) -> int:
    """Show a server until `q`; the exit status.

    Raises:
        ConfigError: this is no terminal.
        AddressError: no server can be asked there.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "longshore top needs a terminal", hint="longshore ctl status, or with --json, is for scripts and pipes."
        )
    # Whatever is wrong with the socket is said before the screen changes.
    Commanded(path).close()
    Top(path, interval).run()
    return 0
