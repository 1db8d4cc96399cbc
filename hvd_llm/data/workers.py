"""The same function over many tasks in several processes, with a progress bar and results in order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from hvd_llm.errors import UserError


class Workers:
    """A pool of processes; with one worker everything runs in this process."""

    def __init__(self, count: int):
        self._pool = None
        if count > 1:
            # Spawned, not forked: tokenizers has threads of its own, which a fork would leave half alive.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._pool:
            if kind is KeyboardInterrupt:  # nobody wants to wait for tasks of minutes
                for worker in multiprocessing.active_children():
                    worker.kill()
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable, tasks: Iterable[tuple], title: str) -> list:
        """Call ``function(*task)`` for each task; return the results in the order of the tasks.

        Raises:
            UserError: what a task raised, or that a worker was killed (as when memory runs out).
        """
        tasks = list(tasks)
        with tqdm(total=len(tasks), desc=title, unit="part", disable=None, leave=False) as bar:
            if not self._pool:
                return [_counted(bar, function(*task)) for task in tasks]
            futures = [self._pool.submit(function, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    _counted(bar, future.result())
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed (out of memory?): run the same command again with fewer --workers; "
                    "finished parts are kept"
                ) from None
            return [future.result() for future in futures]


def _counted(bar: tqdm, result):
    bar.update()
    return result


def _follow_parent() -> None:
    """End this worker when its parent dies: a killed parent cannot do it, and a pool's queue never ends."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent ends us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
