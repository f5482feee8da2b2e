"""Forked processes in one process group: for a notebook, a test, one machine.

A forked process has the weights, the batch and the closure already, without a copy and
without an import: what a notebook defines needs no file. On several machines, or with
GPUs, start the program with torchrun instead.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zolab.errors import WorkerError


def forked(work: Callable[[int], Any], workers: int, *, timeout: float = 600.0) -> list:
    """[work(0), work(1), ...], each in a process of its own, with one torch thread.

    Inside, torch.distributed has a gloo group of `workers`. Results are pickled, so a
    tensor comes back as a copy. `timeout`: seconds until a silent process is given up.
    WorkerError with the traceback of the first that failed, on systems without fork
    and once CUDA runs.
    """
    if (
        "fork" not in multiprocessing.get_all_start_methods()
        or sys.platform == "darwin"
    ):
        raise WorkerError(f"{sys.platform} cannot fork safely: start with torchrun")
    if torch.cuda.is_initialized():
        raise WorkerError("CUDA does not survive a fork: start with torchrun")
    if workers < 1:
        raise WorkerError(f"workers is {workers}, expected at least 1")
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        running = []
        for rank in range(workers):
            here, there = context.Pipe(duplex=False)
            args = work, rank, workers, store, timeout, there
            process = context.Process(target=_run, args=args, daemon=True)
            process.start()
            there.close()
            running.append((process, here))
        try:
            answers = [_hear(here, timeout) for _, here in running]
        finally:
            for process, here in running:
                process.join(1.0)
                process.kill()
                process.join()
                here.close()
    for kind, said in answers:
        if kind == "root":
            raise WorkerError(said)
    for kind, said in answers:
        if kind != "done":
            raise WorkerError(said)
    return [said for _, said in answers]


def _run(
    work: Callable[[int], Any],
    rank: int,
    workers: int,
    store: str,
    timeout: float,
    there: Connection,
) -> None:
    torch.set_num_threads(1)  # OpenMP's threads did not survive the fork
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, workers),
            rank=rank,
            world_size=workers,
            timeout=timedelta(seconds=timeout),
        )
        # Plain pickle: torch teaches multiprocessing's own to share a tensor's memory,
        # which is gone with the process.
        there.send_bytes(pickle.dumps(("done", work(rank))))
        dist.destroy_process_group()
    except BaseException as error:
        heard = isinstance(error, WorkerError)  # it only repeats what another said
        text = f"process {rank}:\n{traceback.format_exc()}"
        there.send_bytes(pickle.dumps(("heard" if heard else "root", text)))


def _hear(here: Connection, timeout: float) -> tuple[str, Any]:
    try:
        if not here.poll(timeout):
            return "lost", f"a process said nothing for {timeout:g} s"
        return pickle.loads(here.recv_bytes())
    except EOFError:
        return "lost", "a process ended without a word: it was killed"
