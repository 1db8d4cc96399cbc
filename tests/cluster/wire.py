"""Send a gradient through compressors, all or those named; rank 0 prints, as JSON, what each host sent and should have.

What it should have is only right of ranks with a host each, and of compressors that know of hosts.
"""

import json
import shlex
import socket
import subprocess
import sys
import time

import torch

from hvd_llm import mesh
from hvd_llm.comm import connect, hvd
from hvd_llm.compress import registry
from hvd_llm.compress.base import At
from hvd_llm.config import Config, Reduce
from hvd_llm.errors import UserError
from hvd_llm.launcher import Launch
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.pricing import price, rehearse

STEPS = 4
SILENCE_S = 4
SHAPES = {"flat": (2**22,), "matrices": (16, 1024, 512)}  # so large that what Horovod says about an operation is little


def sent_bytes(moment: str) -> int:
    """What this host has sent once everything that was said is on the wire."""
    comm.gather_objects(moment, None)
    time.sleep(0.3)
    show = subprocess.check_output(shlex.split("tc -statistics -json qdisc show dev eth0 root"))
    return json.loads(show)[0]["bytes"]


def silent_bytes(seconds: float) -> int:
    """What this host sends if nothing is exchanged between two counts, so many seconds apart."""
    before = sent_bytes(f"silence.{seconds}")
    time.sleep(seconds)
    return sent_bytes(f"silent.{seconds}") - before


torch.set_num_threads(1)
hvd._wake = None  # Horovod asks at a steady rate then, and what it says by itself can be told from what it is told to
comm = connect(Config(reduce=Reduce(cycle_ms=100)), groups=Launch.from_environment().local_size > 1)
ranks = mesh.build(comm.rank, comm.gather_objects("hosts", socket.gethostname()))
comm.register(ranks.named(("node", "across")))
groups = {"world": ranks.world, "node": ranks.node, "across": ranks.across}
places = {name: comm.place(group) for name, group in groups.items()}
# Horovod asks all ranks in every cycle whether there is anything to do, and the counting itself talks.
counting = silent_bytes(0)
silence_per_s = (silent_bytes(SILENCE_S) - counting) / SILENCE_S
found = {}
for name in sys.argv[1:] or registry.names():
    compressor = registry.find(name)
    try:
        rehearse(compressor, comm.size, comm.local_size)
    except UserError:
        continue  # not for so many ranks
    gradient = torch.randn(SHAPES[compressor.takes], generator=torch.Generator().manual_seed(comm.rank))
    before, began, state = sent_bytes(f"before.{name}"), time.monotonic(), {}
    for step in range(STEPS):
        generator = compressor(gradient.clone(), state, At("w", comm.rank, comm.size, step, groups=places))
        Exchange(name, [generator], comm, groups).finish()
    idle = counting + silence_per_s * (time.monotonic() - began)
    counted = comm.gather_objects(f"end.{name}", sent_bytes(f"after.{name}") - before - idle)
    states = [{}]
    prices = [price(compressor, [gradient], comm.size, states, comm.local_size) for _ in range(STEPS)]
    priced = comm.local_size * sum(step.wire_bytes for step in prices)
    found[name] = {"counted": sum(counted) / comm.size, "priced": priced}
if comm.rank == 0:
    print(json.dumps(found))
comm.close()
