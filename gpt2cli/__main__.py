"""``python -m gpt2cli``, and the console script."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn


def _leave(*_: object) -> None:
    os._exit(130)


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    own_handler = signal.getsignal(signal.SIGINT)
    if own_handler is signal.default_int_handler:
        # Its exception can be lost in the import system; nothing is open or written yet.
        signal.signal(signal.SIGINT, _leave)
    try:
        from gpt2cli.cli.app import main
        from gpt2cli.terminal.streams import flush_standard_streams

        if own_handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, own_handler)
        code = main()
        if not flush_standard_streams():
            code = code or 1
    except KeyboardInterrupt:
        # Before main() has its own handler.
        code = 130
    _exit(code)


def _exit(code: int) -> NoReturn:
    """End the process. All is written and flushed: taking modules apart one by one only costs time."""
    if sys.gettrace() is None and sys.getprofile() is None:
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
