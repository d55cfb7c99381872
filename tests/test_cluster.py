"""The job files of docs/deploy, run by a real Slurm and a real Open MPI on loopback."""

import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml

from afterimage.commands.flags import parse
from afterimage.commands.pretrain import COMMAND
from tests.faults.test_runs import assert_same_run
from tests.helpers import ROOT, environment

DEPLOY = ROOT / "docs" / "deploy"
DAEMONS = ("munged", "slurmctld", "slurmd")
# 30 steps, as assert_same_run expects.
RUN = [
    *("--data", "synthetic:8x8x1", "--width", "0.25", "--batch-size", "16"),
    *("--steps", "30", "--save-every", "10", "--eval-every", "15", "--log-every", "1"),
    *("--plain.corruption", "gaussian", "--pictures", "0", "--probe-images", "0"),
    "--no-tensorboard",
]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=200
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 State=UP MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=2 State=UP MaxTime=INFINITE
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a user: `afterimage` on the PATH, one cache."""
    folder = pathlib.Path(sys.executable).parent
    return environment(
        XLA_FLAGS="",
        PATH=f"{folder}:{os.environ['PATH']}",
        AFTERIMAGE_CACHE=str(tmp_path_factory.mktemp("cache")),
    )


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, installed):
    """A Slurm of one node; `slurm(*words)` runs one of its commands."""
    if os.getuid() or not all(map(shutil.which, DAEMONS)):
        pytest.skip("needs root, slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            control=free_port(),
            node=free_port(),
            folder=folder,
        )
    )
    environ = installed | {"SLURM_CONF": str(folder / "slurm.conf")}
    of_munge = [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "seed")]
    commands = [
        ["munged", "-F", "-f", f"--socket={folder}/munge.socket", *of_munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    log = (folder / "log").open("w")
    daemons = []

    def run(*words):
        done = subprocess.run(
            words, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr + (folder / "log").read_text()
        return done.stdout.strip()

    try:
        for command in commands:
            daemons.append(
                subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            )
            time.sleep(1)
        until(lambda: set(run("sinfo", "-ho%T").split()) == {"idle"}, 60)
        yield run
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)
        log.close()


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def submit(slurm, out):
    words = ("--nodes=1", "--ntasks-per-node=2", "--gres=none", "--cpus-per-task=1")
    return slurm(
        *("sbatch", "--parsable", *words, "--output", str(out.with_suffix(".log"))),
        *(str(DEPLOY / "slurm.sbatch"), "--out", str(out), *RUN),
    )


def state(slurm, job):
    words = slurm("scontrol", "show", "job", job).split()
    return next(w.partition("=")[2] for w in words if w.startswith("JobState="))


def reached(out, step):
    path = out / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def finished(slurm, job, out):
    """Waits for the end, without Slurm's two minutes before a job starts again."""

    def over():
        now = state(slurm, job)
        if now == "PENDING":
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        if now in ("FAILED", "CANCELLED", "TIMEOUT"):
            pytest.fail(log.read_text())
        return now == "COMPLETED"

    log = out.with_suffix(".log")
    until(over, 400)
    return log.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, slurm):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    said = finished(slurm, submit(slurm, out), out)
    assert "on 2 cpu devices" in said
    return out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_preempted_slurm_job_ends_bit_identical(tmp_path, slurm, undisturbed):
    out = tmp_path / "run"
    job = submit(slurm, out)
    until(lambda: reached(out, 6), 400)
    urgent = slurm("sbatch", "--parsable", "-phigh", "-n2", "-o/dev/null", "--wrap=:")
    until(lambda: state(slurm, urgent) == "COMPLETED", 300)
    said = finished(slurm, job, out)
    assert "DUE TO PREEMPTION" in said
    assert "Stopped by SIGTERM" in said
    assert "Continuing after step" in said
    assert_same_run(out, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_before_the_time_limit_the_job_file_requeues(tmp_path, slurm, undisturbed):
    out = tmp_path / "run"
    job = submit(slurm, out)
    until(lambda: reached(out, 6), 400)
    # What --signal=TERM@180 does.
    slurm("scancel", "--signal=TERM", f"{job}.0")
    said = finished(slurm, job, out)
    assert "DUE TO" not in said
    assert "Continuing after step" in said
    assert_same_run(out, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs Open MPI")
def test_open_mpi_starts_one_job(tmp_path, installed):
    out = tmp_path / "run"
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    done = subprocess.run(
        ["sh", DEPLOY / "mpi.sh", "-n", "2", *root, "--", "--out", out, *RUN],
        env=installed,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 cpu devices" in done.stdout


def test_every_job_file_parses():
    scripts = sorted([*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch")])
    assert len(scripts) == 3
    assert len(list(DEPLOY.iterdir())) == 4
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)


def test_the_job_of_kubernetes_is_one_that_can_run(tmp_path):
    job = yaml.safe_load((DEPLOY / "jobset.yaml").read_text())
    (hosts,) = job["spec"]["replicatedJobs"]
    pods = hosts["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    line = shlex.join(words)
    subprocess.run(["sh", "-n"], input=line, text=True, check=True)
    assert words[:2] == ["afterimage", "pretrain"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (
        int(values["JAX_NUM_PROCESSES"]) == pods["completions"] == pods["parallelism"]
    )
    # The pod of index 0, as the set's headless service calls it.
    name, port = job["metadata"]["name"], container["ports"][0]["containerPort"]
    first = f"{name}-{hosts['name']}-0-0.{name}:{port}"
    assert values["JAX_COORDINATOR_ADDRESS"] == first
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {one["name"] for one in pods["template"]["spec"]["volumes"]} == set(mounts)
    (tmp_path / "photos").mkdir()
    here = [word.replace(mounts["shared"], str(tmp_path)) for word in words[2:]]
    config = parse(COMMAND, here)
    assert config.data == f"folder:{tmp_path}/photos"
    assert config.out.startswith(str(tmp_path))
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert 75 not in rule["onExitCodes"]["values"]


GCLOUD = """#!/bin/sh
for word in "$@"; do
  case "$word" in --command=*) sh -c "${word#--command=}" ;; esac
done
"""


def test_words_reach_the_hosts_of_a_tpu_as_they_are(tmp_path):
    programs = {"gcloud": GCLOUD, "afterimage": "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    words = [
        "Anna's photos",
        "''",
        "$HOME",
        'a "b"',
        "\\",
        "`id`",
        "",
        "--steps",
        "1; 2",
    ]
    done = subprocess.run(
        ["sh", DEPLOY / "tpu-pod.sh", *words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "a", "ZONE": "b"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["pretrain", *words]
