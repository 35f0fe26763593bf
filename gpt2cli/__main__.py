"""``python -m gpt2cli``, and the console script."""

from __future__ import annotations

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        from gpt2cli.cli.app import main
        from gpt2cli.terminal.streams import flush_standard_streams

        code = main()
        if not flush_standard_streams():
            code = code or 1
    except KeyboardInterrupt:
        # Before main() has its own handler.
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    run()
