"""Hosts made on this machine: as slow as they are said to be, fit for training, gone without a trace."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import ENVIRONMENT, run

from benchmarks import sandbox

HERE = Path(__file__).parent
HOSTS = [sys.executable, "-m", "benchmarks.hosts"]

if reason := sandbox.obstacle():
    pytest.skip(f"there can be no hosts here: {reason}", allow_module_level=True)


@pytest.mark.parametrize("controller", ["gloo", "mpi"])
def test_a_sum_takes_as_long_as_the_network_says(controller):
    done = run(*HOSTS, "--rate", "100mbit", "--controller", controller, "--", sys.executable, HERE / "allreduce.py")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    least = 2**24 * 8 / 100e6
    assert 0.97 * least < said["seconds"] < 1.6 * least
    assert said["controller"] == controller
    assert said["ranks"] == [["h0", "10.77.0.2", 1], ["h1", "10.77.0.2", 1]]
    assert said["sum"] == 2**3


@pytest.mark.parametrize(("controller", "hosts"), [("gloo", 2), ("gloo", 3), ("mpi", 4)])
def test_compressors_send_what_they_are_priced_at(controller, hosts):
    """Within 5 %, as the hosts' own counters have it. (MPI's sums over three ranks send 13 % more than a ring.)"""
    launch = [*HOSTS, "--hosts", hosts, "--rate", "1gbit", "--controller", controller]
    done = run(*launch, "--", sys.executable, HERE / "wire.py")
    assert done.returncode == 0, done.stderr
    for name, sent in json.loads(done.stdout).items():
        assert sent["counted"] == pytest.approx(sent["priced"], rel=0.05), name


@pytest.mark.parametrize(
    ("controller", "names"), [("gloo", ["none", "int4", "topk", "powersgd"]), ("mpi", ["int4", "topk"])]
)
def test_hosts_send_less_if_their_ranks_add_up_first(controller, names):
    """But for plain sums of MPI, which knows of hosts too."""
    launch = [*HOSTS, "--rate", "1gbit", "--ranks-per-host", "2", "--controller", controller]
    together = {name: f"hierarchical(across={name})" for name in names}
    done = run(*launch, "--", sys.executable, HERE / "wire.py", *together, *together.values())
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    for name in names:
        assert sent[together[name]]["counted"] == pytest.approx(sent[together[name]]["priced"], rel=0.05), name
        assert sent[together[name]]["counted"] < 0.8 * sent[name]["counted"], name


@pytest.mark.parametrize(
    ("ranks", "rate", "compressor"),
    [
        (1, "200mbit", "none"),
        (2, "200mbit", "hierarchical(across=topk)"),
        (2, "2mbit", "auto(among=none, hierarchical=true)"),
    ],
)
def test_training_over_two_hosts(tmp_path, data, ranks, rate, compressor):
    shape = [
        "--data.sequence_length",
        "16",
        "--model.layers",
        "1",
        "--model.hidden",
        "32",
        "--model.heads",
        "2",
        "--run.threads",
        "1",
    ]
    length = ["--train.steps", "3", "--train.global_batch", "4", "--train.micro_batch", "2", "--evaluate.batches", "1"]
    where = ["--data.path", data, "--run.dir", tmp_path / "run", "--reduce.compressor", compressor]
    train = ["hvd-llm", "train", "gpt-tiny", *shape, *length, *where]
    done = run(*HOSTS, "--rate", rate, "--controller", "gloo", "--ranks-per-host", ranks, "--", *train)
    assert done.returncode == 0, done.stderr
    said = done.stderr + done.stdout
    assert "step 3/3" in said
    if compressor.startswith("auto"):  # what two ranks of a host send together is less than what both send
        assert "hierarchical(across=none) for" in said
    (launch,) = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    assert sorted(set(launch["hosts"])) == ["h0", "h1"]
    assert not launch["shares_memory"]
    lossy = {"none": "none", "hierarchical(across=topk)": "hierarchical(across=topk"}.get(compressor, "hierarchical")
    assert any(name.startswith(lossy) for name in launch["compressors"])
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        sent_mb = [float(row["sent_mb"]) for row in csv.DictReader(file) if row["sent_mb"]][-1]
    plain_mb = 2 * (2 * ranks - 1) / (2 * ranks) * sum(launch["compressors"].values()) / 1e6
    assert 0 < sent_mb < (0.5 if "topk" in compressor else 1.01) * plain_mb


@pytest.mark.parametrize("controller", ["gloo", "mpi"])
def test_a_rank_that_fails_ends_all_with_its_exit_code(controller):
    began = time.monotonic()
    done = run(*HOSTS, "--controller", controller, "--", "sh", "-c", 'test "$(hostname)" = h0 && exit 7; sleep 60')
    assert done.returncode == 7
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("lacking", ["h1", "*"])
def test_a_host_that_lacks_the_settings_ends_all(data, lacking):
    """In one sentence; also if the others' settings ask for groups of ranks, which this one cannot know."""
    began = time.monotonic()
    train = f'case "$(hostname)" in {lacking}) it=absent.toml;; *) it=gpt-tiny;; esac; exec hvd-llm train $it "$@"'
    words = ["--data.path", data, "--reduce.compressor", "hierarchical(across=topk)"]
    command = ["--controller", "gloo", "--ranks-per-host", "2", "--", "sh", "-c", train, "sh", *words]
    done = run(*HOSTS, *command)
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if "absent.toml" in line]
    assert ("rank 2: " in sentence) == (lacking == "h1")
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 60


def test_a_mistake_is_a_sentence():
    done = run(*HOSTS, "--rate", "5", "--", "true")
    assert done.returncode == 2
    assert done.stderr == "benchmarks.hosts: the rate '5' is not like 500kbit, 200mbit, 1gbit or unlimited\n"


def networks() -> set[str]:
    """Of all processes."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(Path(f"/proc/{process.pid}/ns/net").readlink().name)
        except OSError:  # not ours, or gone
            continue
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_nothing_is_left(tmp_path, how):
    script = "readlink /proc/self/ns/net; mktemp; " + ("sleep 300" if how else "true")
    command = [*HOSTS, "--controller", "mpi", "--", "sh", "-c", script]
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Who runs these tests in the background of a shell has told it to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as outer:
        lines = [outer.stdout.readline() for _ in range(4)]
        made = {line.strip() for line in lines if line.startswith("net:")}
        assert len(made) == 2
        if how:
            assert made <= networks()
            outer.send_signal(how)
        assert outer.wait(timeout=20) == {None: 0, signal.SIGINT: 130}.get(how, -(how or 0))
    patience = time.monotonic() + 5
    while made & networks() and time.monotonic() < patience:
        time.sleep(0.05)
    assert not made & networks()
    assert list(tmp_path.iterdir()) == []
    assert not any(re.match("br0|port0", name) for name in psutil.net_if_addrs())
