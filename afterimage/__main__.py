"""The front door: `afterimage pretrain|finetune|evaluate|select|features|…`."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from afterimage.errors import UserError, did_you_mean
from afterimage.limits import check_address_space

# name -> (module with main(argv, prog=…), one line)
COMMANDS = {
    "pretrain": (
        "afterimage.pretrain.__main__",
        "learn an encoder from images without labels",
    ),
    "finetune": (
        "afterimage.finetune.__main__",
        "the encoder with a new head, from few labels",
    ),
    "evaluate": (
        "afterimage.evaluate_command",
        "score a classifier or an encoder on labels",
    ),
    "select": (
        "afterimage.finetune.select_command",
        "which of several classifiers, without labels",
    ),
    "features": ("afterimage.features_command", "images to vectors, into a file"),
    "checkpoints": ("afterimage.checkpoints_command", "list, show, verify, prune"),
}


def usage() -> str:
    """What `afterimage --help` prints."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: afterimage COMMAND [options]",
            "",
            "Pretrain a convolutional encoder-decoder on images, keep the encoder, "
            "reuse it.",
            "",
            *rows,
            "",
            "afterimage COMMAND --help says more. A first run, about a minute:",
            "  afterimage pretrain --preset digits --out runs/digits",
            "",
            "Exit codes: 0 done, 2 bad input, 3 damaged checkpoint, 4 diverged,",
            "75 interrupted and saved (the same command continues),",
            "130 stopped at once.",
        ]
    )


def _score_classifier(config: Any) -> tuple[dict[str, Any], str]:
    from afterimage.finetune.evaluate import evaluate, text

    report = evaluate(config)
    return report, text(report)


def _dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return
    if argv[0] in {"--version", "version"}:
        from afterimage import __version__

        print(f"afterimage {__version__}")
        return
    name, *rest = argv
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"There is no command {name!r}{hint}\n\n{usage()}")
    help_alone = bool({"-h", "--help"} & set(rest))
    if not help_alone and name != "checkpoints":
        check_address_space()
    module = importlib.import_module(COMMANDS[name][0])
    if not help_alone:
        from afterimage import runtime

        runtime.start()
    more = {"classifier": _score_classifier} if name == "evaluate" else {}
    module.main(rest, prog=f"afterimage {name}", **more)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    from afterimage.cli import exit_code, leave

    # TensorFlow, where TFDS brings it in, must be quiet about accelerators.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = exit_code(lambda: _dispatch(arguments))
    if argv is None:  # this is the whole process, not a call in one
        leave(code)
    return code


if __name__ == "__main__":
    main()
