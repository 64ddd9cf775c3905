"""The `hkm` command, and ``python -m hkm_dask``."""

from __future__ import annotations

import signal


def main(prog_name: str | None = None) -> None:
    """Run the command line; Ctrl-C during its import ends the process silently, as it would a shell command."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hkm_dask.cli import main as command

    signal.signal(signal.SIGINT, before)
    command(prog_name=prog_name)


if __name__ == "__main__":
    main("python -m hkm_dask")
