"""The command ``voc-rl``: parses, calls, prints."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from voc_rl import __version__
from voc_rl.cli.data import Convert, Data, Info, Validate
from voc_rl.cli.demo import Collect, Demo
from voc_rl.cli.ope import Ope
from voc_rl.cli.stages import Evaluate, Tokenize, Train, TrainQuantizer
from voc_rl.errors import VOCError

PURPOSE = "Video occupancy models: values of states and of policies from logged pixels."
STDOUT = 1  # the descriptor of what is printed


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[TrainQuantizer, tyro.conf.subcommand("train-quantizer")]
    | Annotated[Tokenize, tyro.conf.subcommand("tokenize")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Ope, tyro.conf.subcommand("ope")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``voc-rl``. Bad input prints one sentence and exits with code 2."""
    for name in ("stdout", "stderr"):  # closed by who called: then there is nobody to read
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # results are not lost to a γ that this terminal cannot show
            stream.reconfigure(errors="replace")
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"voc-rl {__version__}")
        return
    command = tyro.cli(Command, prog="voc-rl", args=arguments, description=PURPOSE)
    try:
        command.run()
        sys.stdout.flush()  # here, where a reader that is gone can be met
    except VOCError as error:
        print(f"voc-rl: {error}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as error:
        print(f"voc-rl: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"voc-rl: interrupted; {_what_goes_on(command)}.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        sys.exit(141)  # as a command that SIGPIPE ends


def _what_goes_on(command: Any) -> str:
    """What to say to somebody who interrupted a command."""
    wanted = command.command if isinstance(command, Data) else command
    asked = isinstance(wanted, Ope)
    if isinstance(wanted, (Info, Validate)) or (isinstance(wanted, Convert) and wanted.to != "voc"):
        return "it keeps no checkpoints, so the same command starts again"
    if asked and wanted.out is None:
        return "it keeps no checkpoints without --out, so the same command starts again"
    forced = not asked and getattr(getattr(command, "settings", command), "force", False)  # of ope: of results alone
    return f"the same command{' without --force' if forced else ''} goes on from the last checkpoint"


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more (``voc-rl ... | head``); it is thrown away then."""
    printed = select.poll()
    printed.register(STDOUT, 0)
    gone = any(event & select.POLLERR for _, event in printed.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else Python complains when it ends
    return gone
