"""The commands: `afterimage pretrain|finetune|evaluate|…`, one file each.

A command's module has `main(argv)`: it parses, calls the library and prints.
"""

import contextlib
import importlib
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from afterimage import console
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.files import disk_fault
from afterimage.checkpoints.names import printable
from afterimage.errors import (
    AfterimageError,
    DiskError,
    UserError,
    did_you_mean,
    out_of_memory,
)
from afterimage.plugins import plugin_commands

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Train": {
        "pretrain": "pretrain an encoder on images without labels",
        "finetune": "train a classifier on an encoder, even with few labels",
        "adapt": "train a classifier for a target domain without labels",
        "distil": "train a classifier that learns from another, finished one",
        "continual": "train a classifier on a sequence of tasks",
        "episodes": "meta-learning: new classes from a few images each",
    },
    "Use and compare": {
        "predict": "write the class of every image to a file",
        "evaluate": "score a classifier or an encoder on labelled images",
        "features": "write the feature vector of every image to a file",
        "similar": "find the nearest images of an album, or its duplicates",
        "anomalies": "find images unlike the normal ones",
        "label": "suggest images to label next, or find labels that look wrong",
        "select": "rank several classifiers without labels",
        "compare": "compare several runs in one table and on one page",
    },
    "Look up": {
        "models": "list encoders, or describe one",
        "presets": "list presets, or describe one",
        "plan": "what pretraining needs of a GPU or TPU that is not there",
        "methods": "list objectives, methods and their settings",
    },
    "Files": {
        "checkpoints": "list, show, verify or prune the checkpoints of a run",
        "import": "read torchvision's or timm's weights",
        "export": "write an encoder or classifier as ONNX, StableHLO or safetensors",
        "completion": "print a completion script for your shell",
    },
}
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
_WITHOUT_JAX = {"models", "presets", "completion", "checkpoints", "compare"}
_AT_ONCE = 130
_LEAST_MEMORY = 2_400_000_000
"""Bytes of address space: with 2.0e9 XLA aborts, with 2.5e9 a small run works."""


def usage() -> str:
    """The text of `afterimage --help`."""
    lines = [
        "usage: afterimage COMMAND [flags]",
        "",
        "Pretrain an encoder-decoder on images, keep the encoder, and reuse it.",
    ]
    groups = {**GROUPS, **_added()}
    width = max(len(name) for commands in groups.values() for name in commands)
    for heading, commands in groups.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {name:{width}}  {about}" for name, about in commands.items()]
    return "\n".join(
        [
            *lines,
            "",
            "afterimage COMMAND --help shows its flags. A first run takes a minute:",
            "  afterimage pretrain --preset digits --out runs/digits",
            "",
            "Exit codes: 0 done, 1 a bug in Afterimage, 2 bad input, 3 damaged "
            "checkpoint,",
            "4 diverged, 75 interrupted and saved (run the same command to continue),",
            "130 stopped at once, 141 output closed by the reader (| head).",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    # If TFDS imports TensorFlow, keep it quiet about accelerators.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = exit_code(lambda: _dispatch(arguments))
    if argv is None:  # called as the program, not from Python
        leave(code)
    return code


def module_of(name: str) -> str:
    """The module of a command; `import` is a Python keyword, so it is `import_`."""
    return f"afterimage.commands.{name}{'_' * (name == 'import')}"


def load(name: str) -> Any:
    """The imported module of a command, ours or another package's.

    Raises UserError for an unknown name, and for a package that cannot be imported.
    """
    if name in COMMANDS:
        return importlib.import_module(module_of(name))
    added = plugin_commands()
    if name not in added:
        hint = did_you_mean(name, [*COMMANDS, *added])
        raise UserError(
            f"afterimage has no command {printable(name)!r}{hint}\n\n{usage()}"
        )
    try:
        return added[name].load()
    except ImportError as error:
        raise UserError(
            f"The command {name!r} of {_package(added[name])} cannot be loaded: {error}"
        ) from error


def _added() -> dict[str, dict[str, str]]:
    """{heading: {command: its package}} of the commands that other packages add."""
    added = {name: _package(entry) for name, entry in plugin_commands().items()}
    return {"From other packages": added} if added else {}


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in {"-h", "--help", "--help-all", "help"}:
        print(usage())
        return
    if argv[0] in {"--version", "version"}:
        from afterimage import __version__

        print(f"afterimage {__version__}")
        return
    name, *rest = argv
    only_help = bool({"-h", "--help", "--help-all"} & set(rest))
    works = not only_help and name not in _WITHOUT_JAX
    if works:
        check_address_space()
    module = load(name)
    if works:
        from afterimage import runtime

        runtime.start()
    running = console.COMMAND.set(shlex.join(["afterimage", *argv]))
    try:
        module.main(rest)
    finally:
        console.COMMAND.reset(running)


def check_address_space() -> None:
    """Raise UserError if `ulimit -v` leaves too little memory to start JAX."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_MEMORY:
        raise UserError(
            f"This process may use only {limit / 1e9:.1f} GB of address space (ulimit "
            f"-v). JAX needs at least {_LEAST_MEMORY / 1e9:.1f} GB to start; raise "
            "the limit"
        )


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command; an error the user can act on prints a message and sets the code.

    0 done, 2 bad input, 3 damaged checkpoint, 4 diverged, 75 interrupted and saved, 130
    stopped at once, 141 the output was closed (`| head`). Any other error is a bug
    and keeps its traceback.
    """
    console.prepare()
    try:
        code = _run(command)
        sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # not a real stream
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    lost = console.lost_output()
    if lost is not None and code == 0:
        print(
            "The command finished, but some of its output was not printed: "
            f"{lost.strerror} on standard output.",
            file=sys.stderr,
        )
        return UserError.exit_code
    return code


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code.

    To stop at once, it skips the interpreter's shutdown, which waits for threads and
    crashes while one of them runs an XLA program.
    """
    if code == _AT_ONCE:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(command: Callable[[], object]) -> int:
    try:
        command()
    except (AfterimageError, CheckpointError) as error:
        print(printable(str(error), keep="\n\t"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        print(printable(fault, keep="\n\t"), file=sys.stderr)
        return DiskError.exit_code
    except KeyboardInterrupt:
        print("\nStopped. Earlier checkpoints are kept.", file=sys.stderr)
        return _AT_ONCE
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except Exception as error:
        said = out_of_memory(error)
        if said is None:
            raise
        print(
            "Out of memory: this machine, its device, or the limit of this process "
            "is exhausted. Use a smaller --batch-size or --image-size, or raise the "
            f"limit (ulimit -v, or that of the job). The error was: {said}",
            file=sys.stderr,
        )
        return UserError.exit_code
    return 0
