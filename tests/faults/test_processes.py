"""What a shell, a clock, a scheduler and a machine do to a run that goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder
from tests.helpers import environment, limited
from tests.test_finetune_program import write_npz

SETTINGS = [
    *("--data", "synthetic:8x8x1", "--objective", "plain"),
    *("--width", "0.25", "--batch-size", "16"),
    *("--steps", "20", "--save-every", "5", "--eval-every", "10", "--log-every", "1"),
    *("--pictures", "0", "--probe-images", "0", "--no-tensorboard"),
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return {"AFTERIMAGE_CACHE": str(tmp_path_factory.mktemp("cache"))}


def command(out, *more, name="pretrain"):
    settings = SETTINGS if name == "pretrain" else ()
    program = [sys.executable, "-m", "afterimage", name, "--out", str(out)]
    return [*program, *settings, *more]


def start(words, caches, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = environment(**{**caches, **options.pop("env", {})})
    return subprocess.Popen(words, text=True, env=env, **{**pipes, **options})


def finish(process, expected=0):
    output, _ = process.communicate(timeout=200)
    assert "Traceback" not in (output or ""), output[-4000:]
    assert process.returncode == expected, (output or "")[-4000:]
    return output


def wait_for_step(out, process, step):
    path = out / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)


def final(out):
    _, tree, _ = Store(out).restore()
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def rows(out):
    return [
        json.loads(line)
        for line in (out / "metrics.jsonl").read_text().split("\n")
        if line
    ]


def assert_same(one, other):
    for path, leaf in final(one).items():
        np.testing.assert_array_equal(leaf, final(other)[path], err_msg=path)
    timeless = [
        [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in rows(out)
        ]
        for out in (one, other)
    ]
    assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, caches):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(command(out), caches))
    return out


def shell(words, streams):
    """The command with its streams as a shell redirects them."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh", *words]


STREAMS = [">&- 2>&- <&-", ">&-", "2>&-", "<&-", "2>/dev/full"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams",
    [
        pytest.param(s, marks=() if s == STREAMS[0] else pytest.mark.slow)
        for s in STREAMS
    ],
)
def test_closed_and_full_streams_are_no_reason_to_stop(
    tmp_path, caches, whole, streams
):
    out = tmp_path / "run"
    finish(start(shell(command(out), streams), caches))
    assert_same(out, whole)
    assert (out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_lost_output_is_said_and_the_work_is_done(tmp_path, caches, whole):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    process = start(shell(command(out), ">/dev/full"), caches)
    output = finish(process, expected=2)
    assert "No space left on device on standard output" in output


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path, caches, whole):
    out = tmp_path / "zoë"
    shutil.copytree(whole, out)
    env = {"PYTHONIOENCODING": "ascii"}
    assert "zo\\xeb is complete" in finish(start(command(out), caches, env=env))


@pytest.mark.slow
def test_a_second_signal_stops_at_once_with_a_sentence(tmp_path, caches, whole):
    out = tmp_path / "run"
    words = command(out, "--steps", "100000", "--save-every", "5")
    process = start(words, caches)
    wait_for_step(out, process, 7)
    process.send_signal(signal.SIGSTOP)  # both are there when it goes on
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output = finish(process, expected=130)
    assert "Stopped." in output
    assert Store(out).restore()[0] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_stops_the_run_unless_it_was_told_otherwise(
    tmp_path, caches, whole, ignored
):
    out = tmp_path / "run"
    words = command(out)
    if ignored:  # as nohup does
        words = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words]
    process = start(words, caches)
    wait_for_step(out, process, 3)
    process.send_signal(signal.SIGHUP)
    output = finish(process, expected=0 if ignored else 75)
    if not ignored:
        assert "SIGHUP" in output
        finish(start(command(out), caches))
    assert_same(out, whole)


CLOCK = """
import time
real, calls = time.time, [0]
def jumping():
    calls[0] += 1
    return real() - 86400 * calls[0]
time.time = jumping
"""


@pytest.mark.slow
def test_a_clock_that_jumps_back_changes_nothing(tmp_path, caches, whole):
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    out = tmp_path / "run"
    words = [w for w in command(out) if w != "--no-tensorboard"]
    process = start(words, caches, env=env)
    wait_for_step(out, process, 8)
    process.send_signal(signal.SIGTERM)
    finish(process, expected=75)
    for path in out.rglob("*"):  # as if it had been copied from the future
        os.utime(path, (4e9, 4e9))
    finish(start(words, caches, env=env))
    assert_same(out, whole)
    for row in rows(out):
        assert all(v >= 0 for k, v in row.items() if k.startswith("time/"))
    assert len(list((out / "tensorboard").iterdir())) == 2


# A run of this size syncs two hundred times.
STALL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int calls;
static void stall(void) { if (calls++ % 10 == 0) usleep(1000000); }
int fsync(int fd) {
    stall();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
    stall();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_disk_that_stalls_for_a_second_again_and_again_loses_nothing(
    tmp_path, caches, whole, stopped
):
    source, library = tmp_path / "stall.c", tmp_path / "stall.so"
    source.write_text(STALL)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
    )
    env = {"LD_PRELOAD": str(library)}
    out = tmp_path / "run"
    process = start(command(out), caches, env=env)
    if stopped:
        wait_for_step(out, process, 6)  # the save of step 5 stalls now
        process.send_signal(signal.SIGTERM)
        finish(process, expected=75)
        process = start(command(out), caches, env=env)
    finish(process)
    assert_same(out, whole)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores",
)
def test_a_run_goes_on_with_another_number_of_cores(tmp_path, caches, whole):
    """It says so, sees the same batches, and ends as near as rounding allows."""
    pin = (
        "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    out = tmp_path / "run"
    process = start([sys.executable, "-c", pin, *command(out)], caches)
    wait_for_step(out, process, 8)
    process.send_signal(signal.SIGTERM)
    finish(process, expected=75)
    output = finish(start(command(out), caches))
    assert "cores 1 ->" in output
    expected = final(whole)
    for path, leaf in final(out).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "batch", "limit"),
    [
        ("64x64x3", "65536", 4e9),
        ("8x8x1", "16", 2e9),
        ("8x8x1", "16", 6e8),
    ],
)
def test_memory_that_does_not_suffice_is_said(tmp_path, caches, size, batch, limit):
    settings = ["--data", f"synthetic:{size}", "--batch-size", batch]
    words = command(tmp_path / "run", *settings)
    process = start(limited("RLIMIT_AS", int(limit), words), caches)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 2, output[-3000:]
    assert ("--batch-size" if limit > 3e9 else "ulimit -v") in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_two_fine_tunings_from_a_run_that_is_still_writing(tmp_path, caches):
    source = tmp_path / "source"
    data = tmp_path / "data.npz"
    write_npz(data)
    many = ["--steps", "1000000", "--save-every", "1", "--keep-last", "1"]
    writer = start(command(source, *many, "--eval-every", "1000000"), caches)
    settings = ["--data", f"npz:{data}", "--steps", "4", "--no-tensorboard"]
    try:
        while not Store(source).steps():
            time.sleep(0.05)
        for _ in range(30):  # each step is deleted a moment after it is there
            params, _, manifest = read_encoder(source)
            assert params
            assert manifest["trained"]["steps"] >= 1
        tuned = [
            start(
                command(
                    tmp_path / name, "--from", str(source), *settings, name="finetune"
                ),
                caches,
            )
            for name in ("one", "two")
        ]
        for process in tuned:
            assert "that run is not finished" in finish(process)
    finally:
        writer.kill()
        writer.communicate()
