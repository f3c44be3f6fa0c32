"""Python imports this first where PYTHONPATH names its folder: in a flow run and its children, pickling raises.

Prefect's server and runner, whose own queues pickle, are left as they are.
"""

import os
import pickle
import sys
from typing import NoReturn


def _refuse(*arguments: object, **options: object) -> NoReturn:
    raise RuntimeError("something was to be pickled or unpickled")


if "PREFECT__FLOW_RUN_ID" in os.environ:
    import _pickle

    import cloudpickle
    import jinja2.bccache  # pickles a constant when it is imported  # noqa: F401

    for module in (pickle, _pickle, cloudpickle, cloudpickle.cloudpickle):
        for name in ("load", "loads", "dump", "dumps"):
            setattr(module, name, _refuse)
    with open(os.environ["LM_TEST_GUARDED"], "a") as file:
        file.write(" ".join(sys.orig_argv) + "\n")
