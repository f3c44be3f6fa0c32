"""The settings of training: initial weights, optimizer, schedule, guards, precision, device and checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmcore.settings.section import Location, Section, Text, speed, view

Size = Annotated[str, Field(pattern=r"^[0-9][0-9_]*(\.[0-9]+)?[kMG]? ?(steps|tokens|epochs|%)$")]
"""A length: "100 steps", "2.5M tokens", "0.1 epochs" or "20 %" of all steps."""

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cuda", "mps", "cpu"]


class TrainConfig(Section):
    """The training loop."""

    # Length
    max_steps: int = Field(0, ge=0, le=1_000_000_000)
    """Optimizer steps. 0: decided by max_tokens, else by epochs."""
    max_tokens: int = Field(0, ge=0, le=10**15)
    """Tokens to train on if max_steps is 0. 0: decided by epochs."""
    epochs: float = Field(1.0, gt=0, le=10_000)
    """Passes over the training blocks if max_steps and max_tokens are 0."""
    max_minutes: float = view(0.0, ge=0, le=1e6)
    """Minutes after which this start saves a checkpoint and stops. The same command continues. 0: no limit."""
    batch_size: int = Field(16, ge=1, le=1_000_000)
    """Blocks in one optimizer step, over all processes."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the initial weights, the order of blocks and dropout."""

    # Initial weights
    init_from: Location = view("")
    """Start from the weights of a checkpoint folder, an exported or other transformers folder, or a hub name. Its
    tokenizer must be this run's. It brings its own shape and dropout, so the section `model` is unused."""
    init_optimizer: bool = False
    """Also load the optimizer's state, from a checkpoint folder. The order of blocks starts again; another train.seed
    gives another order."""
    trainable: list[Text] = ["*"]
    """Patterns of parameter names to train; all others are frozen (`transformer.h.*`, `*bias`)."""

    # Optimizer
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """adamw decouples weight decay from the gradient (arXiv 1711.05101); adam adds the decay to the gradient (arXiv
    1412.6980); muon orthogonalizes the updates of the matrices inside the model and uses AdamW for the rest (arXiv
    2502.16982)."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so one value serves both."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Weight decay of matrices. Biases, norms and other vectors have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of Adam's first moment per step."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of Adam's second moment per step."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum per step."""
    grad_clip: float = Field(1.0, ge=0, le=1e6)
    """Largest L2 norm of the gradient over all parameters. 0: no clipping."""

    # Schedule
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    """Learning rate after the warm-up. cosine (arXiv 1608.03983) and linear fall to min_learning_rate; constant stays;
    wsd stays and then decays (arXiv 2404.06395); inverse_sqrt is 1 / sqrt(step) (arXiv 1706.03762)."""
    min_learning_rate: float = Field(1e-4, ge=0, le=10)
    """Learning rate at the last step of cosine, linear and wsd."""
    warmup: Size = "2 %"
    """Linear rise to the peak: "100 steps", "2M tokens", "0.1 epochs" or "1 %" of the run."""
    warmup_from: float = Field(0.0, ge=0, le=10)
    """Learning rate before the first step. For continued training, set it to where the last training ended."""
    decay: Size = "20 %"
    """Length of the decay at the end of wsd, by 1 - sqrt(its share) (arXiv 2405.18392). The checkpoint before the decay
    is kept, so a longer training can start there."""

    # Guards
    max_skipped: int = Field(0, ge=0, le=1_000_000)
    """Optimizer steps that may be skipped because the loss or gradient is not finite or the loss is a spike."""
    spike_deviations: float = Field(0.0, ge=0, le=1_000)
    """A loss this many standard deviations above the mean of about the last 100 steps is a spike. 0: off."""
    rollback: bool = False
    """After more bad steps than max_skipped, return to the last checkpoint once and skip the blocks after it."""
    patience: int = Field(0, ge=0, le=1_000_000)
    """Stop with the best checkpoint after this many validations in a row without gain. 0: never."""
    min_gain: float = Field(0.0, ge=0, le=100)
    """Nats per token by which a validation loss must be below the best one to count as a gain."""

    # Precision and speed
    precision: PrecisionChoice = "auto"
    """auto: bf16 autocast on GPUs that support it, else fp32 (bf16 is slower on a CPU without bf16 units)."""
    tf32: bool = speed(True)
    """On GPUs, multiply fp32 matrices in TF32."""
    deterministic: bool = speed(False)
    """On GPUs, compute the same bits in every run, which is slower. A CPU always does."""
    compile: Literal["auto", "off", "blocks", "model"] = speed("auto")
    """torch.compile the whole model, or its blocks (compiled once for all). auto: model on GPUs, else off."""
    micro_batch_size: int = speed(0, ge=0, le=1_000_000)
    """Blocks computed at once in a process; gradients are summed over the batch. 0: all blocks at once."""
    find_micro_batch: bool = speed(False)
    """Before training, halve micro_batch_size until a step fits into memory."""
    gradient_checkpointing: bool = speed(False)
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""
    loss_chunk_tokens: int = speed(4096, ge=0, le=2**30)
    """Tokens whose logits are in memory at once. 0: all, as in transformers."""

    # Devices
    device: DeviceChoice = speed("auto")
    """auto: the first available of cuda, mps and cpu."""
    nproc: int = speed(1, ge=1, le=1024)
    """Processes on this machine, one per GPU, started by torchrun."""
    parallel: Literal["ddp", "fsdp"] = speed("ddp")
    """With several processes: each holds the whole model (ddp) or a share of it (fsdp: FSDP2's fully_shard)."""

    # Validation, logs and checkpoints
    validate_every: int = view(0, ge=0, le=1_000_000_000)
    """Steps between validations. 0: about ten in a run. Every epoch also ends with one."""
    validation_tokens: int = view(500_000, ge=1_000, le=1_000_000_000)
    """Tokens of documents scored by a validation during training. The evaluation after it scores every document."""
    log_every: int = view(10, ge=1, le=1_000_000)
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = view(False)
    """Write event files for TensorBoard into the run's folder (extra `tensorboard`)."""
    peak_tflops: float = view(0.0, ge=0, le=1e6)
    """TFLOP/s of a device in this precision, for MFU. 0: MFU is not reported."""
    checkpoint_every: int = speed(500, ge=1, le=1_000_000_000)
    """Steps between checkpoints. The last step always has one."""
    keep_checkpoints: int = view(2, ge=1, le=1_000)
    """Newest checkpoints to keep. The one with the lowest validation loss is kept too."""
    keep_every: int = view(0, ge=0, le=1_000_000_000)
    """Also keep checkpoints at multiples of this step. 0: off."""

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.schedule not in ("constant", "inverse_sqrt") and self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        if self.warmup_from > self.learning_rate:
            raise ValueError(f"warmup_from {self.warmup_from} is above learning_rate {self.learning_rate}")
        if self.init_optimizer and not self.init_from:
            raise ValueError("init_optimizer needs init_from: there is no optimizer's state to take over")
        return self
