"""Training with several processes on one machine: torchrun's agent, which starts them and waits for their end."""

import logging
import os
import signal

from lmcore.errors import SIGNALLED_STATUS, STOPPED_STATUS, ConfigError
from lmcore.model.device import choose_device
from lmcore.runs.run import Run, finished_training


def run_workers(run: Run) -> int:
    """The exit status of the workers that train the run; this process is torchrun's agent until all have ended.

    A stop request to one worker stops all. When a worker is killed the others end, and the status names the signal.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    nproc = run.config.train.nproc
    if choose_device(run.config.train.device).type == "cuda" and nproc > torch.cuda.device_count():
        raise ConfigError(f"train.nproc is {nproc}, and this machine has {torch.cuda.device_count()} GPUs")
    for name in ("elastic", "run"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)  # the workers log what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # Otherwise the workers connect to this machine's host name, which some machines cannot resolve.
    arguments = [
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        f"--nproc-per-node={nproc}",
        "-m",
        "lmcore",
        "train",
        str(run.folder),
    ]
    try:
        torchrun(get_args_parser().parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException:
        return STOPPED_STATUS
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        if STOPPED_STATUS in statuses:
            return STOPPED_STATUS
        killed = sorted((-status for status in statuses if status < 0), key=lambda number: number == signal.SIGTERM)
        if finished_training(run) is not None:
            return 0  # gloo may abort a process that ends after its work is done
        if killed:  # the agent sends SIGTERM to the others
            return SIGNALLED_STATUS + killed[0]
        return max(statuses)
    return 0
