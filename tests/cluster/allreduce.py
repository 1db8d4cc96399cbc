"""Sum 16 MiB over all ranks a few times; rank 0 prints what it saw as JSON."""

import json
import socket
import time

import torch

from hvd_llm.comm import connect
from hvd_llm.config import Config, Reduce

torch.set_num_threads(1)
comm = connect(Config(reduce=Reduce(cycle_ms=1)))
tensor = torch.ones(4 * 2**20)
seconds = []
for turn in range(3):
    comm.gather_objects(f"begin.{turn}", None)
    began = time.perf_counter()
    comm.sum("tensor", tensor)
    seconds.append(time.perf_counter() - began)
ranks = comm.gather_objects("who", [socket.gethostname(), socket.gethostbyname("h1"), comm.local_size])
if comm.rank == 0:
    print(json.dumps({"seconds": min(seconds), "controller": comm.controller, "ranks": ranks, "sum": tensor[0].item()}))
comm.close()
