"""Hosts with a network of any speed on one machine: namespaces that are plugged into a bridge."""

import ipaddress
import json
import math
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import sandbox
from hvd_llm.errors import UserError

NETWORK = ipaddress.ip_network("10.77.0.0/24")
BRIDGE = NETWORK[254]
UNLIMITED = "unlimited"
_QUEUE_MS = 50
# Loss-based congestion control, as on most clusters; of these, reno is the one that every kernel allows to everyone.
_HOLD = "hostname $1 && echo reno > /proc/sys/net/ipv4/tcp_congestion_control && echo ready && exec sleep infinity"


class Hosts:
    """Hosts h0, h1, … plugged into a bridge, in a program that called `sandbox.enter`. A context manager.

    Attributes:
        names: of the hosts; each can resolve all.
        folder: for files that live as long as the hosts.
    """

    def __init__(self, count: int, rate: str = UNLIMITED):
        """
        Args:
            count: hosts, at most 200.
            rate: of each host in each direction, as `tc` writes it ("200mbit"), or "unlimited".

        Raises:
            UserError: the rate is not written so.
        """
        bits_per_second(rate)
        self.names = [f"h{place}" for place in range(count)]
        self._rate = rate
        self._holders: list[subprocess.Popen] = []  # a process that keeps the namespaces of its host

    def __enter__(self) -> "Hosts":
        self.folder = Path(tempfile.mkdtemp())
        lines = ["127.0.0.1 localhost", *(f"{_address(place)} {name}" for place, name in enumerate(self.names))]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        sandbox.run(f"mount --bind {self.folder}/hosts /etc/hosts")
        sandbox.run("ip link set lo up")
        sandbox.run("ip link add br0 type bridge")
        sandbox.run(f"ip address add {BRIDGE}/{NETWORK.prefixlen} dev br0")
        sandbox.run("ip link set br0 up")
        for place, name in enumerate(self.names):
            self._plug_in(place, name)
        self.limit(self._rate)
        return self

    def _plug_in(self, place: int, name: str) -> None:
        command = ["unshare", "--net", "--uts", "sh", "-c", _HOLD, "hold", name]
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._holders.append(holder)
        if not holder.stdout.readline():
            raise UserError(f"the host {name} could not be made")
        sandbox.run(f"ip link add port{place} type veth peer name eth0 netns {holder.pid}")
        sandbox.run(f"ip link set port{place} master br0 up")
        self._run(place, "ip link set lo up")
        self._run(place, "ip link set eth0 addrgenmode none")  # no IPv6, whose chatter would be counted
        self._run(place, f"ip address add {_address(place)}/{NETWORK.prefixlen} dev eth0")
        self._run(place, "ip link set eth0 up")

    def __exit__(self, *_) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        sandbox.run("ip link delete br0")
        sandbox.run("umount /etc/hosts")
        shutil.rmtree(self.folder)

    def limit(self, rate: str) -> None:
        """Change what every host can send, and what it can receive, at most."""
        # What an idle link has saved up it sends at once: kept small, or a compressed gradient would travel for free.
        # Packets are handed over in halves of that: to cut up larger ones costs cores, to wait behind them time.
        burst = 131_072 if rate == UNLIMITED else max(12_000, int(0.001 * bits_per_second(rate) / 8))
        shape = "pfifo" if rate == UNLIMITED else f"tbf rate {rate} burst {burst} latency {_QUEUE_MS}ms"
        for place in range(len(self.names)):
            sandbox.run(f"tc qdisc replace dev port{place} root {shape}")
            self._run(place, f"tc qdisc replace dev eth0 root {shape}")
            self._run(place, f"ip link set eth0 gso_max_size {min(65_536, burst // 2)}")

    def sent_bytes(self) -> list[int]:
        """What each host has sent, Ethernet headers included. Starts at 0 when a limit is set or lifted."""
        # The interface's own counter takes the headers of packets that are cut up later for one.
        show = "tc -statistics -json qdisc show dev eth0 root"
        return [json.loads(self._run(place, show))[0]["bytes"] for place in range(len(self.names))]

    def command(self, place: int, argv: Sequence[str]) -> list[str]:
        """`argv` as it runs on a host, with the working directory and files of the machine."""
        return ["nsenter", "--target", str(self._holders[place].pid), "--net", "--uts", "--", *argv]

    def _run(self, place: int, command: str) -> str:
        return sandbox.run(self.command(place, shlex.split(command)))


def bits_per_second(rate: str) -> float:
    """What a rate such as "200mbit" means to `tc`; infinity if it is "unlimited".

    Raises:
        UserError: it is not written so.
    """
    if rate == UNLIMITED:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", rate)
    if not match:
        raise UserError(f"the rate {rate!r} is not like 500kbit, 200mbit, 1gbit or unlimited")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def _address(place: int) -> ipaddress.IPv4Address:
    return NETWORK[1 + place]
