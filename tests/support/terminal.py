"""A program on a terminal: what it shows, and what keys do to it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable


def on_terminal(
    arguments: list[str], columns: int = 160, interrupt_when: Callable[[str], bool] | None = None, seconds: float = 120
) -> tuple[int, str]:
    """Runs Python with these arguments on a terminal of its own; gives its exit code and all that it showed.

    Ctrl-C is pressed once, as soon as ``interrupt_when`` says so of what was shown.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown, pressed, deadline = b"", False, time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
        if interrupt_when is not None and not pressed and interrupt_when(shown.decode(errors="replace")):
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


def last_screen_line(shown: str) -> str:
    """What stands in the last line that was not left: carriage returns write over it."""
    return shown.rstrip("\n").rpartition("\n")[2].rpartition("\r")[2]
