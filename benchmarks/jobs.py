"""Contenders as jobs that take turns: one of them trains, the others are stopped.

So drifts of the machine hit everyone alike, and nobody's background threads cost another.
"""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil
from tqdm import tqdm

_RANK = "benchmarks.rank"
_PATIENCE_S = 900
# Python's errors, C++'s, and our own sentences, behind what launchers write before each line.
_ERROR = re.compile(r"(?:\[[^]]*\](?:<\w+>)?:? ?)*((?:[\w.]*(?:Error|Exception)\b|what\(\):|hvd-llm: ).*)")


class Ranks:
    """A launched program.

    Attributes:
        processes: one per rank, or their launcher.
    """

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes

    def poll(self) -> int | None:
        """0 when all have ended well, the exit code of one that has not, None while neither is so."""
        codes = [process.poll() for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    def wait(self) -> int:
        """Wait until all have ended or one has failed, which ends the others; returns the exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.05)
        self.kill()
        return code if code >= 0 else 128 - code  # as a shell says which signal it was

    def family(self) -> list[psutil.Process]:
        """The processes and all that they started."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def kill(self) -> None:
        """Ask what is still there to end; kill whoever does not."""
        family = self.family()
        for process in self.processes:
            process.terminate()  # a launcher passes it on
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self.processes:
                process.wait(timeout=5)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in self.processes:
            process.wait()


class IncompleteError(Exception):
    """A contender is gone, or silent; with the last that it said."""


class Job:
    """A contender's ranks, stopped whenever it is not their turn."""

    def __init__(
        self,
        name: str,
        size: int,
        folder: Path,
        start: Callable[[list[str], IO], Ranks],
        config: str,
        options: list[str],
    ):
        """
        Args:
            folder: an empty one, for the log, traces, and the words that ranks and driver exchange.
            start: starts a command on all ranks, with a file for what they print.
            options: settings, as `hvd-llm train` takes them.
        """
        self.name, self.folder = name, folder
        self.steps = 0  # done so far
        self._size, self._blocks = size, 0
        self._log = open(folder / "log", "w")  # noqa: SIM115 - open as long as the job
        command = [sys.executable, "-m", _RANK, name, config, "--words", str(folder), *options]
        self._ranks = start(command, self._log)

    def block(self, steps: int, warm_up: int = 0) -> float:
        """Let the job do some steps; returns seconds per step of its slowest rank, without the first `warm_up`.

        Raises:
            IncompleteError: one of its ranks ended, or nothing is heard of them for a quarter of an hour.
        """
        self._signal(signal.SIGCONT)
        self._say(f"{warm_up} {steps}")
        done = [self.folder / f"done-{self._blocks}-{rank}" for rank in range(self._size)]
        began = time.monotonic()
        while not all(path.exists() for path in done):
            if self._ranks.poll() is not None:
                raise IncompleteError(self._last_words())
            if time.monotonic() - began > _PATIENCE_S:
                raise IncompleteError(f"nothing heard for {_PATIENCE_S} s; before: {self._last_words()}")
            time.sleep(0.005)
        self._signal(signal.SIGSTOP)
        self._blocks += 1
        self.steps += warm_up + steps
        return max(float(path.read_text()) for path in done)

    def _say(self, word: str) -> None:
        draft = self.folder / ".go"
        draft.write_text(word)
        draft.rename(self.folder / f"go-{self._blocks}")

    def _signal(self, which: int) -> None:
        """To the ranks alone: their launcher goes on watching them."""
        for member in self._ranks.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.cmdline()[1:3] == ["-m", _RANK]:
                    member.send_signal(which)

    def _last_words(self) -> str:
        """The first line of the log that names an error (what follows are the consequences), or its last."""
        lines = [line.strip() for line in (self.folder / "log").read_text(errors="replace").splitlines()]
        errors = [match[1] for line in lines if (match := _ERROR.match(line))]
        return (errors[:1] or [line for line in lines if line][-1:] or ["not a word"])[0]

    def end(self) -> None:
        """Let the ranks leave; whoever is still there after that is killed."""
        self._signal(signal.SIGCONT)
        self._say("0 0")
        patience = time.monotonic() + 20
        while self._ranks.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        self._ranks.kill()
        self._log.close()


class Jobs:
    """Contenders that take turns. A context manager: they end with it.

    Attributes:
        incomplete: of those that are out, by name, what they said last.
    """

    def __init__(self):
        self._running: list[Job] = []
        self.incomplete: dict[str, str] = {}

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *_) -> None:
        for job in self._running:
            job.end()

    def add(self, job: Job) -> None:
        self._running.append(job)

    def in_turn(self, number: int) -> list[Job]:
        """Those still running, another one first in every round: none always comes after the same."""
        first = number % max(1, len(self._running))
        return [*self._running[first:], *self._running[:first]]

    def block(self, job: Job, steps: int, warm_up: int = 0) -> float | None:
        """`job.block`, or None if the job does not complete it, which puts it out."""
        try:
            return job.block(steps, warm_up)
        except IncompleteError as error:
            self.incomplete[job.name] = str(error)
            self._running.remove(job)
            job.end()
            tqdm.write(f"{job.name} did not complete: {error}")
            return None


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]
