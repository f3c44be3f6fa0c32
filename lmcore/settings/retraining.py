"""The settings of a retraining: when a model is trained again, and when its challenger takes the champion's place."""

from typing import Literal

from pydantic import Field

from lmcore.settings.config import RunConfig
from lmcore.settings.section import NAME, Section

Start = Literal["trunk", "export", "scratch"]


class RetrainingConfig(Section):
    """When a model is trained again, and how."""

    model_name: str = Field("lm", pattern=f"^{NAME}$")
    """Name of the model. Its versions are in models/NAME in the store."""
    min_new_bytes: int = Field(100_000, ge=1, le=10**15)
    """Train only if there are at least this many bytes of new training text."""
    start: Start = "export"
    """What a challenger starts from. export: the champion's weights, warmed up again. trunk: its checkpoint before the
    decay of a wsd schedule, with the optimizer's state; else its export. scratch: new weights, trained on all text."""
    replay: float = Field(0.85, ge=0, lt=1)
    """Share of old text in the training of a challenger (arXiv 2403.08763)."""
    budget: float = Field(10.0, gt=0, le=1e6)
    """Tokens that a challenger is trained on, including replay, as a multiple of the tokens of new text."""
    budget_minutes: float = Field(0.0, ge=0, le=1e6)
    """Limit of the budget in minutes of training, at the champion's speed. 0: no limit."""
    hub_repository: str = Field("", pattern=f"^({NAME}/{NAME})?$")
    """Repository on the Hugging Face hub, such as user/name. Each retraining pushes the champion if it is not there. A
    missing repository is created as private. The token is HF_TOKEN. Empty: no push."""


class GateConfig(Section):
    """When a challenger takes the champion's place."""

    old_margin_bits_per_byte: float = Field(0.005, ge=0, le=1)
    """Bits per byte by which a challenger may be worse on old text, at the upper end of the confidence interval."""
    must_improve_new: bool = True
    """The challenger must be better on new text: the whole confidence interval is below zero. Off: no new text is
    needed."""
    every_source: bool = False
    """With several sources, the margin also holds for each source alone, on old and new text."""
    minimum_documents: int = Field(200, ge=2, le=1_000_000_000)
    """Different documents of old and of new text that a comparison needs. With fewer, the champion stays."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """Confidence level of the two-sided intervals."""
    resamples: int = Field(2000, ge=200, le=1_000_000)
    """Resamples of the bootstrap. More give steadier intervals."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the resamples: the same seed gives the same intervals."""


class RetrainConfig(RunConfig):
    """Everything that a retraining needs to know; the other sections say how a model is trained from scratch."""

    retraining: RetrainingConfig = RetrainingConfig()
    """When a model is trained again, and how."""
    gate: GateConfig = GateConfig()
    """When a challenger takes the champion's place."""
    fresh_tokenizer: bool = False
    """Train a new tokenizer on all text instead of using the champion's. The challenger starts from scratch."""

    def run_config(self) -> RunConfig:
        """The settings of a run from scratch."""
        return RunConfig.model_validate(self.model_dump(include=set(RunConfig.model_fields)))
