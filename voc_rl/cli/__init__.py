"""The command ``voc-rl``: parses, calls, prints."""

from voc_rl.cli.command import main

__all__ = ["main"]
