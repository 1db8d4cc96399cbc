"""The compiler Horovod is built with: the machine's own, told more by a wrapper.

Horovod's last release asks for C++14, which no torch since 2.1 compiles with: here torch's own standard is the last
word. Where its ranks wait they are compiled to do so with more patience, and the library tells afterwards.
"""

import hashlib
from pathlib import Path

# What is compiled into which file of Horovod.
PATIENCE = {
    "common/operations.cc": "cycle.h",
    "mpi/mpi_controller.cc": "mpi.h",
    "gloo/transport/tcp/loop.cc": "gloo.h",
}
# nvcc compiles for the GPU by its own standard and passes it to the compiler it calls. Horovod's build asks for
# debugging symbols: writing them is a quarter of the time.
_WRAPPER = """#!/bin/sh
case "$*" in
  *__CUDACC__*) exec "{compiler}" "$@" ;;
{patience}
esac
exec "{compiler}" "$@" -std=gnu++{standard} -g0
"""
_FOLDER = Path(__file__).with_name("patience")


def write(wrapper: Path, compiler: str, standard: int) -> None:
    """Write a script that calls `compiler` as Horovod's files need it, by the C++ standard of that number."""
    cases = [
        f"""  *{source}*) set -- "$@" -include "{_FOLDER / header}" '-DPATIENCE="{_mark(header)}"' ;;"""
        for source, header in PATIENCE.items()
    ]
    text = _WRAPPER.format(compiler=compiler, standard=standard, patience="\n".join(cases))
    wrapper.write_text(text, encoding="utf-8")
    wrapper.chmod(0o755)


def impatient(library: Path) -> list[str]:
    """The files of a built Horovod that were compiled without what belongs into them, or with an older one."""
    code = library.read_bytes()
    return [source for source, header in PATIENCE.items() if _mark(header).encode() not in code]


def _mark(header: str) -> str:
    """What a library says that a header was compiled into."""
    return f"hvd_llm {header} {hashlib.sha256((_FOLDER / header).read_bytes()).hexdigest()}"
