"""What libraries read from the environment when they load."""

from __future__ import annotations

import os

_added: set[str] = set()


def prepare_environment() -> None:
    """Set what libraries read when they load, unless the user did.

    Long spins of OpenMP cost a busy machine much; numpy has no product to compute that is worth threads.
    """
    wanted = {"OPENBLAS_NUM_THREADS": "1"}
    if "OMP_WAIT_POLICY" not in os.environ:
        wanted["GOMP_SPINCOUNT"] = "50000"
    for name, value in wanted.items():
        if name not in os.environ:
            os.environ[name] = value
            _added.add(name)


def users_environment() -> dict[str, str]:
    """The environment without what `prepare_environment` added, for programs that are not ours."""
    return {name: value for name, value in os.environ.items() if name not in _added}
