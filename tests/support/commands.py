"""Commands run for real, in this environment."""

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PYTHONWARNINGS": "default",  # other people's deprecations must not end a command
}


def run(*words, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    """Run a command of this environment and return what it printed."""
    return subprocess.run(
        [str(word) for word in words], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, **options
    )


def launcher(ranks: int, controller: str = "mpi") -> list[str]:
    """The words before a command that start it on `ranks` ranks; none for a world of one."""
    return [] if ranks == 1 else ["horovodrun", f"--{controller}", "-np", str(ranks)]
