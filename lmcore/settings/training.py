"""The settings of training: the model's beginning, the optimizer, its schedule, guards, and what runs where."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from lmcore.settings.section import Section, Text, speed, view

Size = Annotated[str, Field(pattern=r"^[0-9][0-9_]*(\.[0-9]+)?[kMG]? ?(steps|tokens|epochs|%)$")]
"""A part of a run: "100 steps", "2.5M tokens", "0.1 epochs" or "20 %" of all steps."""

Precision = Literal["fp32", "bf16", "fp16"]


class TrainConfig(Section):
    """The training loop."""

    model_config = ConfigDict(title="Training settings")  # equal to the field's, pydantic would leave both out of forms

    # How long
    max_steps: int = Field(0, ge=0, le=1_000_000_000)
    """Optimizer steps. 0: as many as max_tokens, or else epochs, asks for."""
    max_tokens: int = Field(0, ge=0, le=10**15)
    """Tokens to train on, when max_steps is 0. 0: as many as epochs asks for."""
    epochs: float = Field(1.0, gt=0, le=10_000)
    """Passes over the training blocks, when max_steps and max_tokens are 0."""
    max_minutes: float = view(0.0, ge=0, le=1e6)
    """Minutes after which this start saves a checkpoint and stops; the same command continues. 0: no such limit."""
    batch_size: int = Field(16, ge=1, le=1_000_000)
    """Blocks in one optimizer step, all processes together."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """A number that chooses the initial weights, the order of blocks and dropout."""

    # From which weights
    init_from: Text = view("", title="Begin with the weights of")
    """Begin with the weights of a checkpoint folder, an exported or other transformers folder, or a hub name, instead
    of new ones. Its tokenizer must be this run's. The model's shape and dropout are then its own, and the section
    `model` is unused. Where the weights lie does not name the run: what they are does."""
    init_optimizer: bool = Field(False, title="Take over the optimizer")
    """Take over the optimizer's state too, for continued pretraining. Only from a checkpoint folder. The order of
    blocks begins anew: over the same text, another train.seed gives another one."""
    trainable: list[Text] = ["*"]
    """Patterns of parameter names to update; all others stay frozen (`transformer.h.*`, `*bias`)."""

    # Optimizer
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw decays weights apart from the gradient (arXiv 1711.05101); adam adds the decay to it (arXiv 1412.6980);
    muon orthogonalizes the updates of the matrices inside the model, AdamW takes the rest (arXiv 2502.16982)."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so it is the same for both."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """On matrices only, never on biases, norms and other vectors."""
    beta1: float = Field(0.9, ge=0, lt=1, title="Beta 1")
    """Decay of Adam's first moment, a step."""
    beta2: float = Field(0.95, ge=0, lt=1, title="Beta 2")
    """Decay of Adam's second moment, a step."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum, a step."""
    grad_clip: float = Field(1.0, ge=0, le=1e6)
    """Longest gradient, as L2 norm over all parameters. 0: no clipping."""

    # Schedule
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    """After the warm-up: a cosine (arXiv 1608.03983) or a line down to min_learning_rate; no change; no change and then
    a decay (warm-up, stable, decay: arXiv 2404.06395); or 1 / sqrt(step) (arXiv 1706.03762)."""
    min_learning_rate: float = Field(1e-4, ge=0, le=10)
    """Learning rate at the last step of cosine, linear and wsd."""
    warmup: Size = "2 %"
    """Linear rise to the peak: "100 steps", "2M tokens", "0.1 epochs" or "1 %" of the run."""
    warmup_from: float = Field(0.0, ge=0, le=10)
    """Learning rate before the first step. Continued training re-warms from where the last one ended."""
    decay: Size = "20 %"
    """Length of the decay at the end of wsd. The checkpoint where it begins is kept: training can go on there."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Of wsd's decay: a line, or 1 - sqrt(share of the decay) (arXiv 2405.18392)."""

    # Guards
    max_skipped: int = Field(0, ge=0, le=1_000_000)
    """Optimizer steps that may be skipped, in a run, because loss or gradient is no number or the loss a spike."""
    spike_deviations: float = Field(0.0, ge=0, le=1_000)
    """A loss this many standard deviations above the mean of about the last 100 steps is a spike. 0: no spikes."""
    rollback: bool = False
    """Where one step too many is bad, go back to the last checkpoint once, and pass over the blocks since."""
    patience: int = Field(0, ge=0, le=1_000_000)
    """Validations in a row without gain after which training ends with its best checkpoint. 0: never."""
    min_gain: float = Field(0.0, ge=0, le=100)
    """Nats per token by which a validation loss must be below the best one to be a gain."""

    # Arithmetic
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast on GPUs that have it, fp32 elsewhere (a CPU without bf16 units is slower with it)."""
    tf32: bool = speed(True, title="TF32")
    """On GPUs, multiply fp32 matrices in TF32."""
    deterministic: bool = speed(False)
    """On GPUs, the same bits in every run, at the price of speed. A CPU always does so."""
    compile: Literal["auto", "off", "blocks", "model"] = speed("auto")
    """torch.compile the whole model, or its blocks (compiled once for all). auto: model on GPUs, off elsewhere."""
    micro_batch_size: int = speed(0, ge=0, le=1_000_000)
    """Blocks computed at once in a process; gradients are summed over as many as the batch needs. 0: all of them."""
    find_micro_batch: bool = speed(False)
    """Before training, halve micro_batch_size until a step fits into memory."""
    gradient_checkpointing: bool = speed(False)
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    loss_chunk_tokens: int = speed(4096, ge=0, le=2**30)
    """Tokens whose logits are there at once. 0: all, as transformers does."""

    # Where
    device: Literal["auto", "cuda", "mps", "cpu"] = speed("auto")
    """auto: cuda, then mps, then cpu, the first one there."""
    nproc: int = speed(1, ge=1, le=1024, title="Processes")
    """Processes on this machine, one a GPU, started by torchrun."""
    parallel: Literal["ddp", "fsdp"] = speed("ddp")
    """With several processes: every one holds the model (ddp), or a share of it (fsdp: FSDP2's fully_shard)."""

    # What is seen and kept
    validate_every: int = view(0, ge=0, le=1_000_000_000)
    """Steps between validations. 0: about ten a run. Every epoch ends with one in any case."""
    validation_tokens: int = view(500_000, ge=1_000, le=1_000_000_000)
    """Tokens scored by a validation while training, whole documents in the order of their hashes.
    The evaluation after training scores every document."""
    log_every: int = view(10, ge=1, le=1_000_000)
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = view(False, title="TensorBoard")
    """Write event files for TensorBoard into the run's folder (extra `tensorboard`)."""
    peak_tflops: float = view(0.0, ge=0, le=1e6, title="Peak TFLOP/s")
    """TFLOP/s that a device can do in this precision; MFU is stated against it. 0: MFU is not stated."""
    checkpoint_every: int = speed(500, ge=1, le=1_000_000_000)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = view(2, ge=1, le=1_000)
    """Newest checkpoints to keep; the one with the lowest validation loss is kept too."""
    keep_every: int = view(0, ge=0, le=1_000_000_000)
    """Keep the checkpoints of all steps that this divides. 0: none for that reason."""

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.schedule not in ("constant", "inverse_sqrt") and self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.warmup_from > self.learning_rate:
            raise ValueError(f"warmup_from {self.warmup_from} is above learning_rate {self.learning_rate}")
        if self.init_optimizer and not self.init_from:
            raise ValueError("init_optimizer needs init_from: there is no optimizer's state to take over")
        return self
