# SPDX-License-Identifier: Apache-2.0
"""Measures to_here and empty rpc_sync of torch.distributed.rpc between two processes of this
machine; one JSON object a line.

usage: torch_to_here.py [--sizes 8,4096] [--seconds 0.5]
"""
import argparse
import json
import os
import socket
import statistics
import time

import torch
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp


def make(nbytes):
    return torch.ones(nbytes, dtype=torch.uint8)


def nothing():
    return None


def timed(fn, seconds):
    for _ in range(5):
        fn()
    ns = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ns) < 5:
        start = time.perf_counter_ns()
        fn()
        ns.append(time.perf_counter_ns() - start)
    return ns


def row(op, nbytes, ns):
    ns.sort()
    print(json.dumps({"op": op, "peer": "torch", "device": "tensorpipe", "bytes": nbytes,
                      "iters": len(ns), "p50_ns": statistics.median(ns),
                      "p99_ns": ns[min(len(ns) - 1, len(ns) * 99 // 100)]}), flush=True)


def worker(rank, port, sizes, seconds):
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(port)
    rpc.init_rpc(f"worker{rank}", rank=rank, world_size=2)
    if rank == 1:
        for nbytes in sizes:
            ref = rpc.remote("worker0", make, args=(nbytes,))
            row("lat", nbytes, timed(ref.to_here, seconds))
            del ref
        row("call", 0, timed(lambda: rpc.rpc_sync("worker0", nothing), seconds))
        row("create", 8, timed(lambda: rpc.remote("worker0", make, args=(8,)).to_here(), seconds))
    rpc.shutdown()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--sizes", default="8,4096,65536,1048576")
    p.add_argument("--seconds", type=float, default=0.5)
    a = p.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(port, [int(x) for x in a.sizes.split(",")], a.seconds), nprocs=2)


if __name__ == "__main__":
    main()
