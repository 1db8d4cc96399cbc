"""The trace: one append-only file per rank that says what happened and when.

A file is a 4,096-byte header (JSON, padded with spaces, ended by a newline) followed by 32-byte
records. The header describes the records, so a reader needs nothing from this package; a file cut
short by a crash loses at most its last, incomplete record and what the current step had buffered.
The format is documented in docs/run_folder.md; change `SCHEMA` whenever its meaning changes.
"""

import json
import os
import socket
import struct
import time
from contextlib import contextmanager
from pathlib import Path

SCHEMA = "hvd_llm.trace/1"
HEADER_BYTES = 4096

# One record: start and end on this rank's monotonic clock (ns), an amount whose unit depends on the
# kind, the optimizer step, the index (micro-batch or bucket, by kind) and the kind.
RECORD = struct.Struct("<qqqIHH")
FIELDS = [
    ["start_ns", "<i8"],
    ["end_ns", "<i8"],
    ["amount", "<i8"],
    ["step", "<u4"],
    ["index", "<u2"],
    ["kind", "<u2"],
]

# name: (number on disk, what `index` counts, what `amount` is)
KINDS = {
    "step": (1, None, "input tokens of this rank"),
    "input": (2, None, None),
    "forward": (3, "micro-batch", None),
    "backward": (4, "micro-batch", None),
    "bucket_queue": (5, "bucket", None),  # from the last gradient's arrival to the first request
    "bucket_exchange": (6, "bucket", "payload bytes"),  # from the first request to the last answer seen
    "bucket_sent": (14, "bucket", "bytes that this rank sends"),  # the same span
    "exposed": (7, None, None),  # waiting for gradients that are still on their way
    "optimizer": (8, None, None),  # scaling, clipping, the update
    "checkpoint": (9, None, "bytes"),
    "evaluate": (10, None, "target tokens of this rank"),
    "expected_exchange": (12, "bucket", "ns that reduce.compressor = auto expects of its exchange"),
    "expected_step": (13, None, "ns that it expects of a step without its optimizer part"),
    "clock": (11, None, "ns to add to this rank's clock to get rank 0's; true within half the span"),
}
_NUMBERS = {name: number for name, (number, _, _) in KINDS.items()}

now = time.monotonic_ns


class Trace:
    """Writes one rank's records. Values are buffered and reach the file once a step (`flush`)."""

    def __init__(self, path: Path, rank: int, size: int):
        """Create the file `path` (its folder too).

        Raises:
            FileExistsError: the file is there already; a trace is never overwritten.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self._began: int | None = None  # when the step under way did; None between steps
        self._buffer = bytearray()
        self._open: list[list] = []  # kind, index and start of spans under way, the innermost last
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - open for the run
        header = {
            "schema": SCHEMA,
            "rank": rank,
            "size": size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "monotonic_ns": now(),
            "unix_ns": time.time_ns(),
            "record": FIELDS,
            "kinds": {
                str(number): {"name": name, "index": index, "amount": amount}
                for name, (number, index, amount) in KINDS.items()
            },
        }
        text = json.dumps(header).encode()
        assert len(text) < HEADER_BYTES, "the trace header outgrew its block"
        self._file.write(text.ljust(HEADER_BYTES - 1) + b"\n")

    def begin(self, step: int) -> None:
        """A step begins."""
        self.step, self._began = step, now()

    def end(self, amount: int) -> None:
        """It is over."""
        self.add("step", self._began, now(), amount=amount)
        self._began = None

    def add(self, kind: str, start_ns: int, end_ns: int, index: int = 0, amount: int = 0) -> None:
        """Record one span of the current step."""
        self._buffer += RECORD.pack(start_ns, end_ns, amount, self.step, index, _NUMBERS[kind])

    @contextmanager
    def span(self, kind: str, index: int = 0):
        """Record the body as a part of the step under way, also when it raises; between steps, record nothing.

        A span inside another interrupts it: the outer one is recorded in pieces, and no two overlap.
        """
        if self._began is None:
            yield
            return
        self._cut()
        self._open.append([kind, index, now()])
        try:
            yield
        finally:
            self._cut()
            self._open.pop()
            if self._open:
                self._open[-1][2] = now()

    def _cut(self) -> None:
        """Record what there is of the innermost span that is open."""
        if self._open:
            kind, index, start = self._open[-1]
            self.add(kind, start, now(), index)

    def flush(self) -> None:
        """Hand the buffered records to the operating system, which keeps them if this process dies."""
        if self._buffer:
            self._file.write(self._buffer)
            self._buffer.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()


class NoTrace(Trace):
    """The same calls, nothing written: for `trace.enabled = false`."""

    def __init__(self):
        self.step, self._began, self._open = 0, None, []

    def add(self, kind, start_ns, end_ns, index=0, amount=0):
        pass

    def flush(self):
        pass

    def close(self):
        pass
