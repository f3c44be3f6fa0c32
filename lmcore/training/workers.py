"""Several processes on one machine that train one model: the agent that starts them and waits for their end."""

import logging
import os
import signal

from lmcore.errors import SIGNALLED_STATUS, STOPPED_STATUS, ConfigError
from lmcore.model.device import choose_device
from lmcore.runs.run import Run, finished_training


def run_workers(run: Run) -> int:
    """Be torchrun's agent for the workers that train the run, until all have ended; their exit status.

    A stop asked of one is a stop of all. A worker that dies ends the others, and the status says by which signal.
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
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)  # the workers say what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # Else the workers meet at this machine's own name, which not every machine can resolve.
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
            return 0  # gloo may abort a process that has done everything and ends
        if killed:  # SIGTERM is what the agent itself sent to the others
            return SIGNALLED_STATUS + killed[0]
        return max(statuses)
    return 0
