"""What `hvd-llm bench` found out about a network: a line, latency and seconds per byte, for every kind of operation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import json_file
from analysis.errors import AnalysisError
from analysis.prices import KINDS

SCHEMA = "hvd_llm.collectives/1"
# Bytes on Ethernet for each that is sent: a frame of 1514 carries 1448 of TCP.
FRAMING = 1514 / 1448


@dataclass(frozen=True)
class Network:
    """Attributes:
    ranks: among which it was measured.
    latency_s, per_byte_s: by kind of operation; bytes are those that a rank sends.
    """

    ranks: int
    latency_s: Mapping[str, float]
    per_byte_s: Mapping[str, float]

    def seconds(self, kind: str, sent: float, ranks: int) -> float:
        """Of an operation among so many ranks, which pass messages on from one to the next, N - 1 times or twice that.

        (Hockney 1994; Thakur et al. 2005.) What a rank sends in all grows with N as `sent` says.
        """
        return self.latency_s[kind] * (ranks - 1) / (self.ranks - 1) + self.per_byte_s[kind] * sent

    def limited(self, bytes_per_s: float) -> "Network":
        """The same latencies, on Ethernet of another rate."""
        return replace(self, per_byte_s=dict.fromkeys(self.per_byte_s, FRAMING / bytes_per_s))


def read(path: Path) -> Network:
    """Read a folder that `hvd-llm bench` wrote.

    Raises:
        AnalysisError: it is none.
    """
    where = str(path / "run.json")
    about = json_file.read(path / "run.json")
    if about.get("schema") != SCHEMA:
        raise AnalysisError(f"{where} has schema {about.get('schema')!r:.80}; this reads {SCHEMA!r}")
    lines = json_file.need(about, "lines", dict, where)
    launches = json_file.need(about, "launches", list, where)
    if not launches or not isinstance(launches[0], dict):
        raise AnalysisError(f"{where}: 'launches' must name the ranks that were measured")
    ranks = json_file.need(launches[0], "size", int, where)
    if ranks < 2:
        raise AnalysisError(f"{where}: 'size' is {ranks}; one rank exchanges nothing")
    numbers = {
        name: {kind: _number(json_file.need(lines, kind, dict, where), name, where) for kind in KINDS}
        for name in ("latency_s", "per_byte_s")
    }
    return Network(ranks, **numbers)


def _number(line: dict, name: str, where: str) -> float:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise AnalysisError(f"{where}: {name!r} of a line is {value!r:.80}; it must be a number of seconds")
    return float(value)
