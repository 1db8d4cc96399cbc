"""Hosts with a network of any speed on one machine, without root: `python -m benchmarks.hosts -- COMMAND`.

    python -m benchmarks.hosts --hosts 4 --rate 200mbit --controller gloo -- hvd-llm train gpt-tiny --run.threads 1

A host is a network namespace with a name of its own, plugged into a bridge by an interface `eth0` that sends and
receives at most at the given rate. Cores, memory and files are those of the machine, shared by all hosts. Nothing is
left of it afterwards, however it ends.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from benchmarks import sandbox
from benchmarks.jobs import Ranks
from benchmarks.netns import BRIDGE, NETWORK, UNLIMITED, Hosts
from hvd_llm.errors import UserError


def launch(
    hosts: Hosts,
    argv: Sequence[str],
    controller: str,
    ranks_per_host: int = 1,
    env: Mapping[str, str] | None = None,
    output: IO | None = None,
) -> Ranks:
    """Start `argv` as Horovod's ranks on all hosts, host by host.

    Args:
        controller: "gloo" or "mpi".
        env: changes to this process's environment.
        output: file for what they print and complain; this process's own if None.
    """
    start = {"gloo": _over_gloo, "mpi": _over_mpi}[controller]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"} | dict(env or {})  # where torch's Gloo looks
    return start(hosts, list(argv), ranks_per_host, environment, output)


def _over_gloo(hosts: Hosts, argv: list[str], ranks_per_host: int, env: dict[str, str], output: IO | None) -> Ranks:
    """What `horovodrun --gloo` does with ssh."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    size = len(hosts.names) * ranks_per_host
    slots = get_host_assignments([HostInfo(name, ranks_per_host) for name in hosts.names], size, size)
    server = RendezvousServer()
    env |= {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "eth0",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": str(BRIDGE),
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(server.start()),
        "PYTHONUNBUFFERED": "1",
    }
    server.init(slots)
    processes = [
        _start(hosts.command(hosts.names.index(slot.hostname), argv), env | create_slot_env_vars(slot), output)
        for slot in slots
    ]
    return Ranks(processes)


def _over_mpi(hosts: Hosts, argv: list[str], ranks_per_host: int, env: dict[str, str], output: IO | None) -> Ranks:
    """mpirun, for which entering a namespace takes the place of ssh."""
    agent = hosts.folder / "agent"
    enter = [shlex.join(hosts.command(place, ["sh", "-c"])) for place in range(len(hosts.names))]
    cases = [f'{name}) exec {words} "$*";;' for name, words in zip(hosts.names, enter, strict=True)]
    agent.write_text("\n".join(["#!/bin/sh", 'host=$1; shift; case "$host" in', *cases, "esac", ""]))
    agent.chmod(0o700)
    command = [
        *("mpirun", "-H", ",".join(f"{name}:{ranks_per_host}" for name in hosts.names)),
        *("--bind-to", "none", "--map-by", "slot"),  # hosts share the cores: each would bind to the first
        *("--leave-session-attached", "--mca", "plm", "rsh", "--mca", "plm_rsh_agent", str(agent)),
        *("--mca", "pml", "ob1", "--mca", "btl", "vader,tcp,self"),
        *("--mca", "btl_tcp_if_include", str(NETWORK), "--mca", "oob_tcp_if_include", str(NETWORK)),
    ]
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # as everyone is in a sandbox
    return Ranks([_start([*command, *argv], env, output)])


def _start(command: list[str], env: dict[str, str], output: IO | None) -> subprocess.Popen:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rate", default=UNLIMITED, help="of each host, such as 200mbit (default: %(default)s)")
    parser.add_argument("--controller", default="gloo", choices=["gloo", "mpi"], help="default: %(default)s")
    parser.add_argument("--ranks-per-host", type=int, default=1, help="default: %(default)s")
    parser.add_argument("command", nargs="+", help="what every rank runs, after --")
    args = parser.parse_args()
    try:
        sandbox.enter()
        with Hosts(args.hosts, args.rate) as hosts:
            code = launch(hosts, args.command, args.controller, args.ranks_per_host).wait()
    except UserError as error:
        print(f"benchmarks.hosts: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
