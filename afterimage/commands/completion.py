"""`afterimage completion bash|zsh|fish`, and the candidates the scripts request."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_origin

from afterimage.commands import COMMANDS, load
from afterimage.commands.flags import Command, flags_for, parse
from afterimage.console import say
from afterimage.fields import joined_of
from afterimage.plugins import plugin_commands

# Each script calls `afterimage completion words WORD...` for the completions of the
# last word; if there are none, the shell completes file names.
SCRIPTS = {
    "bash": """\
_afterimage() {
  local IFS=$'\\n'
  COMPREPLY=($(afterimage completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o bashdefault -F _afterimage afterimage""",
    "zsh": """\
#compdef afterimage
_afterimage() {
  local -a found
  found=(${(f)"$(afterimage completion words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( ${#found} )); then compadd -Q -- $found; else _files; fi
}
compdef _afterimage afterimage""",
    "fish": """\
function __afterimage
  set -l typed (commandline -opc) (commandline -ct)
  afterimage completion words $typed[2..-1] 2>/dev/null
end
complete -c afterimage -a '(__afterimage)'""",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """A completion script."""

    shell: Literal["bash", "zsh", "fish"]
    """Your shell."""


COMMAND = Command(
    name="completion",
    config=Completion,
    positional="shell",
    about="""\
Print a script that completes commands, flags, names and files.

  bash:  eval "$(afterimage completion bash)"          in ~/.bashrc
  zsh:   eval "$(afterimage completion zsh)"           in ~/.zshrc
  fish:  afterimage completion fish | source           in config.fish""",
    common={"Settings": ("shell",)},
)


def main(argv: Sequence[str]) -> None:
    """Prints a script; the scripts themselves call `words`."""
    if argv and argv[0] == "words":
        print("\n".join(candidates(argv[1:])))
        return
    say(SCRIPTS[parse(COMMAND, argv).shell])


def candidates(words: Sequence[str]) -> list[str]:
    """Completions of the last word after `afterimage`, given the words before it.

    Empty if it is a path: the shell completes those.
    """
    *before, last = words or [""]
    if not before:
        every = [*COMMANDS, *plugin_commands(), "--help", "--version"]
        return _starting(every, last)
    command = _command(before)
    if command is None:
        from afterimage.commands.checkpoints import COMMANDS as SUBCOMMANDS

        known = SUBCOMMANDS if before == ["checkpoints"] else ()
        return _starting(known, last)
    flags = {flag.flag: flag for flag in flags_for(command, before[1:])}
    if last.startswith("-"):
        general = ["--config", "--print-config", "--help", "--help-all"]
        general += command.actions
        return _starting(
            [*flags, *(["--preset"] * bool(command.presets)), *general], last
        )
    if before[-1] == "--preset":
        return _starting(command.presets, last)
    # The flag whose value is being typed; it may already have several values.
    place = max((i for i, w in enumerate(before) if w.startswith("-")), default=0)
    flag = flags.get(before[place] if place else f"--{command.positional}")
    if flag is None or flag.names is None:
        return []
    if place and len(before) - place > 1 and get_origin(flag.hint) is not tuple:
        return []
    done, comma, _ = last.rpartition(",")
    if joined_of(flag.hint) is None:
        done, comma = "", ""
    return _starting((f"{done}{comma}{name}" for name in flag.listed()), last)


def _command(before: Sequence[str]) -> Command | None:
    if before[0] not in {*COMMANDS, *plugin_commands()}:
        return None
    module = load(before[0])
    if before[0] == "checkpoints":
        return module.COMMANDS.get(before[1]) if len(before) > 1 else None
    return module.COMMAND


def _starting(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]
