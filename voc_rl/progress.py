"""How far long work has got: on a screen a bar that moves, in a log file a plain line a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {elapsed} passed, {remaining} left{postfix}"
_LINE_EVERY = 60.0  # seconds


def progress_bar(
    iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0,
    show: bool = True,
) -> tqdm[Any]:  # fmt: skip
    """tqdm's progress bar, on stderr. Its environment variables are heeded: ``TQDM_DISABLE=1`` turns all bars off.

    Args:
        iterable: what is gone through; None: the caller says ``update``. desc: the work. unit: what is counted.
        total: how many there are; None: the iterable's length. initial: how many were done before. show: False is
            silence.
    """
    settings: dict[str, Any] = {"desc": desc, "unit": unit, "total": total, "initial": initial}
    if not show:
        return tqdm(iterable, disable=True, **settings)
    if sys.stderr.isatty():
        return tqdm(iterable, **settings)
    # beyond maxinterval tqdm's own thread shows a bar that was not: after the 10 seconds that it leaves by default
    return _Lines(iterable, mininterval=_LINE_EVERY, maxinterval=2 * _LINE_EVERY, bar_format=_LINE, **settings)


class _Lines(tqdm):
    """tqdm that begins a new line where it would overwrite the old one."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        begun = False

        def print_status(status: str) -> None:
            nonlocal begun
            file.write(f"\n{status}" if begun else status)  # closing the bar ends the last line
            file.flush()
            begun = True

        return print_status
