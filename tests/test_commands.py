"""Every command: its help, what it lists, completion; compare on real run folders."""

import contextlib
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys

import pytest

from afterimage.commands import COMMANDS, completion, main, module_of
from afterimage.commands.checkpoints import COMMANDS as OF_CHECKPOINTS
from afterimage.commands.flags import all_flags
from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.plugins import METHODS, OBJECTIVES
from afterimage.pretrain.presets import PRESETS as PRETRAIN
from tests.helpers import environment

MODULES = {name: importlib.import_module(module_of(name)) for name in COMMANDS}
DESCRIBED = [m.COMMAND for m in MODULES.values() if hasattr(m, "COMMAND")]
DESCRIBED += OF_CHECKPOINTS.values()
RATIOS = ["--masked.ratio", "--masked.ratio-max"]
WITHOUT_A_CHOICE = [c for c in DESCRIBED if not c.fixed]


def said(capsys, *argv, code=0):
    assert main(argv) == code
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("command", DESCRIBED, ids=lambda c: c.name)
def test_help_fits_two_screens(command, capsys):
    text = said(capsys, *command.name.split(), "--help")
    flags = re.findall(r"^  (?:-h, )?--[a-z]", text, re.MULTILINE)
    assert 1 <= len(flags) <= 40
    assert len(text.splitlines()) <= 120
    assert text.startswith(f"usage: afterimage {command.name}")


@pytest.mark.parametrize("command", DESCRIBED, ids=lambda c: c.name)
def test_common_flags_exist_and_all_are_documented(command, capsys):
    fields = {f.name for f in dataclasses.fields(command.flags or command.config)}
    common = [name for names in command.common.values() for name in names]
    assert set(common) <= fields
    assert len(set(common)) == len(common)
    flags = all_flags(command, command.fixed, {})
    assert all(flag.about for flag in flags)
    if command.kind:
        text = said(capsys, *command.name.split(), "--help-all")
        assert not [f.flag for f in flags if not re.search(rf"{f.flag}\b", text)]


def test_no_help_without_a_choice_waits_for_jax():
    names = [command.name.split() for command in WITHOUT_A_CHOICE]
    code = (
        "import json, sys\n"
        "from afterimage.commands import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert main([*words, '--help']) == 0\n"
        "    assert 'jax' not in sys.modules, words\n"
        "assert main(['presets']) == 0\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_usage_names_every_command_and_exit_code(capsys):
    text = said(capsys, "--help")
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)
    for code in (0, 2, 3, 4, 75, 130, 141):
        assert f"{code} " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pretrian"], ["did you mean 'pretrain'"]),
        (["checkpoints", "lst"], ["did you mean 'list'"]),
        (["presets", "digts"], ["did you mean 'digits'"]),
        (["methods", "maskd"], ["did you mean 'masked'"]),
        (["models", "resnet19"], ["did you mean 'resnet18'"]),
        (["completion", "fsh"], ["fish"]),
        (["pretrain", "--objective", "maskd"], ["did you mean 'masked'"]),
        (["pretrain", "digits", "--masked.ratio", "1"], ["--objective masked"]),
        (["finetune", "digits", "--dann.weight", "1"], ["dann to --methods"]),
    ],
    ids=" ".join,
)
def test_what_is_mistyped_is_named(argv, words, capsys):
    text = said(capsys, *argv, code=2)
    for word in words:
        assert word in text


def test_nothing_is_offered_where_no_command_is_near(capsys):
    assert "did you mean" not in said(capsys, "zzzzz", code=2)


def test_presets_are_listed_and_described(capsys):
    text = said(capsys, "presets")
    for name, preset in (PRETRAIN | FINETUNE).items():
        assert name in text
        assert preset.about in text
    assert PRETRAIN["patches"].cost in said(capsys, "presets", "patches")


def test_models_are_listed_and_described(capsys):
    assert "resnet18" in said(capsys, "models")
    text = said(capsys, "models", "conv", "--image-size", "32")
    assert "16 x 16 x 32" in text
    assert re.search(r"[\d,]+ parameters", text)


def test_methods_are_listed_and_described(capsys):
    text = said(capsys, "methods")
    assert all(name in text for name in (*OBJECTIVES.names(), *METHODS.names()))
    text = said(capsys, "methods", "masked")
    assert "--masked.ratio NUMBER" in text


@pytest.mark.parametrize(
    ("words", "expected", "missing"),
    [
        ([""], set(COMMANDS), set()),
        (["pre"], {"pretrain", "presets"}, {"features"}),
        (["pretrain", "--ob"], {"--objective"}, {"--out"}),
        (["pretrain", "--objective", "m"], {"masked"}, {"plain"}),
        (
            ["pretrain", "--objective", "masked", "--masked.r"],
            {"--masked.ratio"},
            set(),
        ),
        (["pretrain", "--masked.r"], set(), {"--masked.ratio"}),
        (["pretrain", "--preset", "dig"], {"digits"}, set()),
        (["pretrain", "--out", ""], set(), {"--out", "digits"}),
        (["pretrain", "--model", "resnet"], {"resnet18"}, {"conv"}),
        (["finetune", "--methods", "dann", "l2"], {"l2-sp"}, set()),
        (["finetune", "--schedule", "cosine", "co"], set(), {"constant"}),
        (["episodes", "--wa"], {"--ways", "--warmup-steps"}, set()),
        (["checkpoints", ""], {"list", "show", "verify", "prune"}, set()),
        (["checkpoints", "prune", "--dry"], {"--dry-run"}, set()),
        (["completion", "f"], {"fish"}, set()),
        (["nonsense", ""], set(), {"list"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_may_follow(words, expected, missing):
    found = set(completion.candidates(words))
    assert expected <= found
    assert not missing & found
    assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_a_completion_script_is_of_its_shell(shell, capsys):
    script = said(capsys, "completion", shell)
    assert "completion words" in script
    if shutil.which(shell) is not None:
        check = subprocess.run([shell, "-n"], input=script, text=True, timeout=60)
        assert check.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("afterimage pretr", ["pretrain"]),
        ("afterimage pretrain --preset dig", ["digits"]),
        ("afterimage pretrain --objective masked --masked.rati", RATIOS),
        ("afterimage pretrain photos --out x/", []),
    ],
)
def test_bash_completes(line, expected, tmp_path, capsys):
    script = tmp_path / "completion.bash"
    script.write_text(said(capsys, "completion", "bash"))
    words = line.split(" ")
    # As the shell does: the function is called with the words and the place in them.
    code = (
        f'afterimage() {{ "{sys.executable}" -m afterimage "$@"; }}\n'
        f"source {script}\n"
        f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
        "_afterimage\n"
        "complete -p afterimage >/dev/null\n"
        'compgen -W "${COMPREPLY[*]}" -- "${COMP_WORDS[COMP_CWORD]}" || true\n'
    )
    done = subprocess.run(
        ["bash", "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = list(dict.fromkeys(done.stdout.split()))
    assert found == expected


def run_folder(path, kind, config, rows):
    path.mkdir()
    stored = {"kind": kind, "config": config}
    (path / "config.json").write_text(json.dumps(stored))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(lines)


def test_runs_are_compared_in_a_table_and_on_a_page(tmp_path, capsys):
    for name, rate in (("a", 0.001), ("b", 0.01)):
        rows = [
            {"step": step, "train/loss": rate + 1 / step, "eval/loss": rate}
            for step in (1, 2, 3)
        ]
        config = {
            "out": name,
            "lr": rate,
            "seed": 7,
            "objective": {"name": "masked", "ratio": 0.5 + rate},
        }
        run_folder(tmp_path / name, "pretrain", config, rows)
    out = tmp_path / "page.html"
    with contextlib.chdir(tmp_path):
        text = said(capsys, "compare", "a", "b", "--out", str(out))
    for word in ("0.01", "0.501", "lr", "loss"):
        assert word in text
    assert "seed" not in text
    page = out.read_text()
    assert "<svg" in page
    assert "0.51" in page


@pytest.mark.parametrize("folders", [["a"], ["a", "nowhere"]])
def test_runs_that_are_none_are_named(folders, tmp_path, capsys):
    run_folder(tmp_path / "a", "pretrain", {}, [])
    with contextlib.chdir(tmp_path):
        text = said(capsys, "compare", *folders, code=2)
    assert folders[-1] in text or "two" in text


def test_another_runs_settings_begin_a_new_one(tmp_path, capsys):
    config = {"data": "digits", "out": "old", "lr": 0.5, "steps": 3}
    config["objective"] = {"name": "masked", "ratio": 0.25}
    run_folder(tmp_path / "old", "pretrain", config, [])
    argv = ["pretrain", "--config", str(tmp_path / "old"), "--out", "new", "--epochs"]
    text = said(capsys, *argv, "2", "--print-config")
    for line in ('out = "new"', "lr = 0.5", "epochs = 2.0", "ratio = 0.25"):
        assert line in text
    assert "steps = 3" not in text
    argv = ["finetune", "--config", str(tmp_path / "old"), "--out", "new"]
    assert "pretrain run" in said(capsys, *argv, code=2)
