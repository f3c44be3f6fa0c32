"""The training loop, from top to bottom.

``train`` continues a run from its newest checkpoint, or starts it, or returns at once what is finished. The
batches, the learning rate and the moments of validation are pure functions of the step, so on a CPU a run that was
interrupted anywhere ends with the same weights, to the last bit, as one that was not.

The CPU waits for the GPU at three places only: logging, validation and checkpoints.

Shapes: B blocks in a batch, T tokens in a block, V pieces in the vocabulary.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lmcore.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, weights_hash
from lmcore.config import TrainConfig
from lmcore.device import autocast, choose_device, choose_precision
from lmcore.errors import StoppedError, TrainingError
from lmcore.evaluate import Scorer
from lmcore.loader import Batch, loader, prefetched, to_device
from lmcore.metrics import MetricsWriter, Row
from lmcore.mixture import open_blocks
from lmcore.model import freeze_all_but, new_model, parameter_count
from lmcore.optim import build_optimizer, learning_rate
from lmcore.run import Run
from lmcore.store import Record, locked, open_sealed
from lmcore.stream import IGNORED_LABEL, TokenStream
from lmcore.tokenization import verify_chunks

_log = logging.getLogger(__name__)


class TrainingResult(Record):
    """A finished training."""

    file_name = "training.json"
    run: str
    step: int
    tokens: int
    """Tokens trained on, counted each time they were."""
    train_loss: float
    """Nats per token, mean over the last log interval."""
    validation_loss: float
    """Nats per token on the documents that were scored while training."""
    tokens_per_second: float
    """Over all training steps, validation and checkpoints left out."""
    weights: str
    """Hash of the checkpoint's weights: two trainings with the same one have the same model."""
    parameters: int
    trainable_parameters: int
    device: str
    precision: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step-{self.step:08d}"

    def verify(self) -> None:
        super().verify()
        Run.open(self.folder)
        open_sealed(self.checkpoint)


@dataclass
class State:
    """What a checkpoint says besides tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    """Over the ``loss_steps`` steps since the last log row."""
    loss_steps: int = 0
    train_loss: float = math.nan
    validation_loss: float = math.nan


def train(run: Run, should_stop: Callable[[], bool] = lambda: False) -> TrainingResult:
    """Train ``run`` to its end. ``should_stop`` is asked after every step, and while
    another process trains the run.

    Raises StoppedError after saving a checkpoint when ``should_stop`` said so, TrainingError when the loss is no
    longer a number, RunError when the run is in use, StoreError when a shard is damaged (sizes are checked at every
    start, bytes once).
    """
    with locked(run.lock, run.config.when_locked, should_stop):
        return finished_training(run) or _Training(run).finish(should_stop)


def finished_training(run: Run) -> TrainingResult | None:
    """The result of a training that has ended and whose last checkpoint proves whole; else None."""
    result = TrainingResult.load(run.folder)
    if result is None or newest_checkpoint(run.checkpoints) != result.checkpoint:
        return None
    return result if weights_hash(result.checkpoint) == result.weights else None


class _Training:
    """The parts of one training, put together; ``finish`` is the loop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: TrainConfig = run.config.train
        verify_chunks(run.dataset_folder)
        self.device = choose_device(self.config.device)
        self.precision = choose_precision(self.config.precision, self.device)
        self.blocks = open_blocks(run.dataset_folder, run.config.dataset)
        self.model = new_model(run).to(self.device)
        freeze_all_but(self.model, self.config.trainable)
        self.optimizer = build_optimizer(self.model, self.config)
        saved = load_checkpoint(run.checkpoints, self.model, self.optimizer)
        self.state = State(**saved) if saved else State()
        self.metrics = MetricsWriter(run.metrics, self.state.step)
        self.score = Scorer.of_run(run, self.model)
        self.validation = _first_documents(run, self.config.validation_tokens)
        self.total_steps = planned_steps(self.config, len(self.blocks))
        _log.info(
            "%s: %s parameters on %s in %s, step %d of %d, %d blocks an epoch",
            run.folder.name,
            f"{parameter_count(self.model):,}",
            self.device,
            self.precision,
            self.state.step,
            self.total_steps,
            len(self.blocks),
        )

    def finish(self, should_stop: Callable[[], bool]) -> TrainingResult:
        state, config = self.state, self.config
        self.model.train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=self.device)
        self.clock = _Clock()
        self.logged = (state.tokens, state.seconds)
        for batch, tokens in self._batches():
            rate = learning_rate(state.step, self.total_steps, config)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

            state.step += 1
            state.tokens += tokens
            state.loss_steps += 1
            loss_sum += loss.detach()
            is_last = state.step == self.total_steps
            if state.step % config.log_every == 0 or is_last:
                self._log(loss_sum.item(), rate, norm.item())
                loss_sum.zero_()
            if self._is_validation_step():
                self._validate()
            stopping = not is_last and should_stop()
            if state.step % config.checkpoint_every == 0 or is_last or stopping:
                state.loss_sum = loss_sum.item()
                self._save()
            if stopping:
                raise StoppedError(
                    f"training stopped on request after step {state.step} of {self.total_steps}, checkpoint "
                    "saved: the same command continues"
                )
        return self._result()

    def _batches(self) -> Iterator[tuple[Batch, int]]:
        """Batches on the device and the tokens that are learnt from each.

        On a GPU they are made in a thread while it computes. On a CPU a batch costs 0.1 ms of a step of 200, and
        training with the thread was as fast as without (measured on two cores).
        """
        size, dataset = self.config.batch_size, self.run.config.dataset
        batches = loader(
            self.blocks,
            size,
            first_block=self.state.step * size,
            last_block=self._last_block(),
            seed=self.config.seed,
            shuffle=dataset.shuffle,
            document_ids=dataset.document_masking,
        )
        ready = ((to_device(batch, self.device), int((batch["labels"] != IGNORED_LABEL).sum())) for batch in batches)
        return prefetched(ready) if self.device.type == "cuda" else ready

    def _last_block(self) -> int:
        if self.config.max_steps:
            return self.total_steps * self.config.batch_size
        return math.ceil(self.config.epochs * len(self.blocks))

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy in nats per token that is no padding, computed in fp32."""
        positions_BT = batch.get("position_ids")
        with autocast(self.precision, self.device):
            logits_BTV = self.model(input_ids=batch["input_ids"], position_ids=positions_BT, use_cache=False).logits
        return cross_entropy(logits_BTV.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED_LABEL)

    def _is_validation_step(self) -> bool:
        """Every validate_every steps, at the end of each epoch, and at the last step."""
        step, size, blocks = self.state.step, self.config.batch_size, len(self.blocks)
        every = self.config.validate_every or max(1, self.total_steps // 10)
        ends_epoch = step * size // blocks > (step - 1) * size // blocks
        return step % every == 0 or ends_epoch or step == self.total_steps

    def _log(self, loss_sum: float, rate: float, norm: float) -> None:
        state = self.state
        loss = loss_sum / state.loss_steps
        state.seconds += self.clock.lap()
        self._check("loss", loss)
        self._check("gradient's norm", norm)
        tokens, seconds = self.logged
        speed = (state.tokens - tokens) / (state.seconds - seconds)
        self.logged = (state.tokens, state.seconds)
        state.train_loss, state.loss_steps = loss, 0
        self._write(
            "train",
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=speed,
        )

    def _validate(self) -> None:
        self.state.seconds += self.clock.lap()
        score = self.score(self.validation)
        self._check("validation loss", score.nats_per_token)
        self.state.validation_loss = score.nats_per_token
        self._write("validation", loss=score.nats_per_token, bits_per_byte=score.bits_per_byte)
        self.clock.lap()

    def _check(self, name: str, figure: float) -> None:
        if not math.isfinite(figure):
            raise TrainingError(
                f"the {name} is {figure} after step {self.state.step}: lower train.learning_rate (now "
                f"{self.config.learning_rate}) or clip harder (train.grad_clip), then start with --fresh"
            )

    def _write(self, kind: str, **figures: float) -> None:
        row: Row = {
            "kind": kind,
            "step": self.state.step,
            "total_steps": self.total_steps,
            "tokens": self.state.tokens,
            "epoch": min(self.state.step * self.config.batch_size, self._last_block()) / len(self.blocks),
        }
        self.metrics.write({**row, **figures})

    def _save(self) -> None:
        self.state.seconds += self.clock.lap()
        save_checkpoint(
            self.run.checkpoints,
            self.state.step,
            self.model,
            self.optimizer,
            asdict(self.state),
            self.config.keep_checkpoints,
        )
        self.clock.lap()

    def _result(self) -> TrainingResult:
        state = self.state
        return TrainingResult(
            run=self.run.folder.name,
            folder=self.run.folder,
            step=state.step,
            tokens=state.tokens,
            train_loss=state.train_loss,
            validation_loss=state.validation_loss,
            tokens_per_second=state.tokens / state.seconds,
            weights=weights_hash(self.run.checkpoints / f"step-{state.step:08d}"),
            parameters=parameter_count(self.model),
            trainable_parameters=parameter_count(self.model, trainable_only=True),
            device=str(self.device),
            precision=self.precision,
        ).save()


def planned_steps(config: TrainConfig, blocks: int) -> int:
    """Optimizer steps: max_steps, or as many as the epochs have batches (the last may be short)."""
    if config.max_steps:
        return config.max_steps
    return max(1, math.ceil(math.ceil(config.epochs * blocks) / config.batch_size))


def _first_documents(run: Run, tokens: int) -> list[Any]:
    """Validation documents in the order of their hashes, until they hold ``tokens`` tokens."""
    documents = sorted(TokenStream(run.dataset_folder, "validation").documents(), key=lambda document: document[2])
    chosen: list[Any] = []
    count = 0
    for document in documents:
        if chosen and count >= tokens:
            break
        chosen.append(document)
        count += len(document[0])
    return chosen


class _Clock:
    """Splits time into laps."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds
