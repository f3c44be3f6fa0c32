"""How far a training is, apart from its tensors: the part of a checkpoint that is JSON."""

import math
from dataclasses import dataclass, field

from lmcore.training.guard import EarlyStopping


@dataclass
class State:
    """The state of the loop; ``TrainStep.state`` has that of the step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """In training steps."""
    row_seconds: float = 0.0
    """Of them since the last log row, and waiting for data of these."""
    row_waited: float = 0.0
    train_loss: float = math.nan
    validation_loss: float = math.nan
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    passed_over: int = 0
    """Blocks that a rollback left out."""
