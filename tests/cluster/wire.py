"""Send a gradient through every compressor; rank 0 prints what each host sent, as JSON, and what it should have."""

import json
import shlex
import subprocess
import time

import torch

from hvd_llm.comm import WORLD, connect
from hvd_llm.compress import registry
from hvd_llm.compress.base import At
from hvd_llm.config import Config, Reduce
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.pricing import price

STEPS = 4
SHAPES = {"flat": (2**22,), "matrices": (8, 1024, 512)}


def sent_bytes(moment: str) -> int:
    """What this host has sent once everything that was said is on the wire."""
    comm.gather_objects(moment, None)
    time.sleep(0.3)
    show = subprocess.check_output(shlex.split("tc -statistics -json qdisc show dev eth0 root"))
    return json.loads(show)[0]["bytes"]


torch.set_num_threads(1)
comm = connect(Config(reduce=Reduce(cycle_ms=100)))
found = {}
# Horovod asks all ranks in every cycle whether there is anything to do, and the counting itself talks.
idle = -sent_bytes("before.nothing") + sent_bytes("after.nothing")
for name in registry.names():
    compressor = registry.find(name)
    gradient = torch.randn(SHAPES[compressor.takes], generator=torch.Generator().manual_seed(comm.rank))
    before, state = sent_bytes(f"before.{name}"), {}
    for step in range(STEPS):
        generator = compressor(gradient.clone(), state, At("w", comm.rank, comm.size, step))
        Exchange(name, [generator], comm, {"world": WORLD}).finish()
    counted = comm.gather_objects(f"end.{name}", sent_bytes(f"after.{name}") - before - idle)
    priced = STEPS * price(compressor, gradient, comm.size).wire_bytes
    found[name] = {"counted": sum(counted) / comm.size, "priced": priced}
if comm.rank == 0:
    print(json.dumps(found))
comm.close()
