"""Whole runs on a real S3 server on loopback, with faults and a killed process.

Needs pip install s3fs 'moto[s3]' flask flask-cors.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from afterimage.checkpoints import inspect
from afterimage.pretrain.run import pretrain
from afterimage.storage import Bucket
from tests import buckets
from tests.helpers import environment
from tests.test_remote_runs import config, require_equal

pytestmark = pytest.mark.slow
_RUN = (
    "import sys; from afterimage.storage import working; working.POLL = 0.1\n"
    "from tests.test_remote_runs import config; import time\n"
    "from afterimage.pretrain.run import pretrain\n"
    "from afterimage.training.loop import Callbacks\n"
    # It never ends by itself, however slow the machine that must see its checkpoint.
    "stay = Callbacks(on_log=lambda step, _: time.sleep(900 if step == 6 else 1))\n"
    "pretrain(config(sys.argv[1]), callbacks=stay)\n"
)


@pytest.fixture(scope="module")
def port():
    with buckets.moto_server() as port:
        yield port


@pytest.fixture
def server(port, monkeypatch):
    with buckets.served(port, monkeypatch) as server:
        yield server


@pytest.mark.timeout(900)
def test_a_killed_run_is_continued_on_another_machine_under_faults(
    server, monkeypatch, tmp_path
):
    expected = pretrain(config(tmp_path / "here"))
    url, count = f"s3://{server.bucket}/runs/a", [0]

    def one_in_seven(method, path, body):
        count[0] += 1
        halved = "half" if method == "PUT" and "weights" in path else "reset"
        return {3: "503", 5: halved}.get(count[0] % 7)

    server.fault = one_in_seven
    child = subprocess.Popen(
        [sys.executable, "-c", _RUN, url],
        env=environment(AFTERIMAGE_CACHE=str(tmp_path / "one")),
    )
    bucket, deadline = Bucket(url), time.monotonic() + 600
    while "checkpoints/4/manifest.json" not in bucket.entries():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "two"))
    pretrain(config(url))  # the dead process's lock is taken over at once
    require_equal(url, expected)
    assert not any(finding.fatal for finding in inspect.verify(url))
