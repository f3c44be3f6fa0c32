"""The settings of training: initial weights, optimizer, schedule, guards, and hardware."""

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
    """Optimizer steps. 0: max_tokens decides, or else epochs."""
    max_tokens: int = Field(0, ge=0, le=10**15)
    """Tokens to train on, if max_steps is 0. 0: epochs decides."""
    epochs: float = Field(1.0, gt=0, le=10_000)
    """Passes over the training blocks, if max_steps and max_tokens are 0."""
    max_minutes: float = view(0.0, ge=0, le=1e6)
    """Minutes after which this start saves a checkpoint and stops; the same command continues. 0: no limit."""
    batch_size: int = Field(16, ge=1, le=1_000_000)
    """Blocks in one optimizer step, all processes together."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Random seed of the initial weights, the order of blocks and dropout."""

    # From which weights
    init_from: Text = view("", title="Begin with the weights of")
    """Initial weights: a checkpoint folder, an exported or other transformers folder, or a hub name. Empty: new
    weights. Its tokenizer must be that of this run. Its shape and dropout replace the section `model`. The content of
    the weights, not their path, is part of the run's name."""
    init_optimizer: bool = Field(False, title="Take over the optimizer")
    """Also load the optimizer's state, for continued pretraining. Only from a checkpoint folder. The order of blocks
    starts again; over the same text another train.seed gives another order."""
    trainable: list[Text] = ["*"]
    """Patterns of parameter names to update; others are frozen (`transformer.h.*`, `*bias`)."""

    # Optimizer
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw decays weights separately from the gradient (arXiv 1711.05101). adam adds the decay to the gradient (arXiv
    1412.6980). muon orthogonalizes the updates of the matrices inside the model and uses AdamW for the rest (arXiv
    2502.16982)."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so the same value fits both."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Weight decay of matrices. Biases, norms and other vectors have none."""
    beta1: float = Field(0.9, ge=0, lt=1, title="Beta 1")
    """Decay of Adam's first moment in each step."""
    beta2: float = Field(0.95, ge=0, lt=1, title="Beta 2")
    """Decay of Adam's second moment in each step."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum in each step."""
    grad_clip: float = Field(1.0, ge=0, le=1e6)
    """Largest L2 norm of the gradient over all parameters. 0: no clipping."""

    # Schedule
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    """After warm-up. cosine (arXiv 1608.03983) and linear fall to min_learning_rate. constant does not change. wsd is
    constant and then decays (arXiv 2404.06395). inverse_sqrt is 1 / sqrt(step) (arXiv 1706.03762)."""
    min_learning_rate: float = Field(1e-4, ge=0, le=10)
    """Learning rate at the last step of cosine, linear and wsd."""
    warmup: Size = "2 %"
    """Linear rise to the peak: "100 steps", "2M tokens", "0.1 epochs" or "1 %" of the run."""
    warmup_from: float = Field(0.0, ge=0, le=10)
    """Learning rate before the first step. For continued training, the value at which the last one ended."""
    decay: Size = "20 %"
    """Length of the decay at the end of wsd. The checkpoint at its start is kept, to continue training from there."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Shape of wsd's decay: linear, or 1 - sqrt(share of the decay) (arXiv 2405.18392)."""

    # Guards
    max_skipped: int = Field(0, ge=0, le=1_000_000)
    """Optimizer steps that a run may skip because loss or gradient is not finite or the loss is a spike."""
    spike_deviations: float = Field(0.0, ge=0, le=1_000)
    """A loss this many standard deviations above the mean of the last 100 steps or so is a spike. 0: no check."""
    rollback: bool = False
    """After more than max_skipped bad steps, return once to the last checkpoint and skip the blocks since then."""
    patience: int = Field(0, ge=0, le=1_000_000)
    """Training ends with its best checkpoint after this many validations in a row without gain. 0: never."""
    min_gain: float = Field(0.0, ge=0, le=100)
    """Nats per token by which the validation loss must improve to count as a gain."""

    # Arithmetic
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast on GPUs that support it, fp32 elsewhere (bf16 is slower on a CPU without bf16 units)."""
    tf32: bool = speed(True, title="TF32")
    """Multiply fp32 matrices in TF32 on GPUs."""
    deterministic: bool = speed(False)
    """Give the same bits in every run on GPUs, which is slower. A CPU always does."""
    compile: Literal["auto", "off", "blocks", "model"] = speed("auto")
    """torch.compile the whole model, or its blocks (compiled once). auto: model on GPUs, off elsewhere."""
    micro_batch_size: int = speed(0, ge=0, le=1_000_000)
    """Blocks that a process computes at once; gradients are summed up to the batch. 0: all blocks at once."""
    find_micro_batch: bool = speed(False)
    """Halve micro_batch_size before training until a step fits into memory."""
    gradient_checkpointing: bool = speed(False)
    """Recompute activations in the backward pass: less memory, a third more time."""
    loss_chunk_tokens: int = speed(4096, ge=0, le=2**30)
    """Tokens whose logits are in memory at once. 0: all, as in transformers."""

    # Where
    device: Literal["auto", "cuda", "mps", "cpu"] = speed("auto")
    """auto: the first available of cuda, mps and cpu."""
    nproc: int = speed(1, ge=1, le=1024, title="Processes")
    """Processes on this machine, one for each GPU, started by torchrun."""
    parallel: Literal["ddp", "fsdp"] = speed("ddp")
    """With several processes, each holds the whole model (ddp) or a share of it (fsdp: FSDP2's fully_shard)."""

    # What is seen and kept
    validate_every: int = view(0, ge=0, le=1_000_000_000)
    """Steps between validations. 0: about ten in a run. Each epoch also ends with one."""
    validation_tokens: int = view(500_000, ge=1_000, le=1_000_000_000)
    """Tokens of a validation during training: complete documents in the order of their hashes. The evaluation after
    training scores all documents."""
    log_every: int = view(10, ge=1, le=1_000_000)
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = view(False, title="TensorBoard")
    """Write event files for TensorBoard into the run's folder (extra `tensorboard`)."""
    peak_tflops: float = view(0.0, ge=0, le=1e6, title="Peak TFLOP/s")
    """TFLOP/s of a device in this precision, for MFU. 0: no MFU."""
    checkpoint_every: int = speed(500, ge=1, le=1_000_000_000)
    """Steps between checkpoints. The last step always has one."""
    keep_checkpoints: int = view(2, ge=1, le=1_000)
    """Newest checkpoints to keep. The one with the lowest validation loss is kept too."""
    keep_every: int = view(0, ge=0, le=1_000_000_000)
    """Also keep checkpoints at multiples of this step. 0: off."""

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.schedule in ("cosine", "linear", "wsd") and self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.warmup_from > self.learning_rate:
            raise ValueError(f"warmup_from {self.warmup_from} is above learning_rate {self.learning_rate}")
        if self.init_optimizer and not self.init_from:
            raise ValueError("init_optimizer needs init_from: there is no optimizer state to load")
        return self
