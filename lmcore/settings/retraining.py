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

    old_margin: float = Field(0.005, ge=0, le=1)
    """Bits per byte by which a challenger may be worse than the champion on old text, with 97.5 % confidence. No
    source may be proved worse by more."""
    total_margin: float = Field(0.010, ge=0, le=1)
    """Bits per byte by which a challenger may be worse on the anchor than its reference, with 97.5 % confidence: the
    limit of what many promotions may lose together. The anchor is the held-out text that the champions brought."""
    must_improve_new: bool = True
    """The challenger must be better on new text, with 90 % confidence. If off, only old text counts, and no new text
    is needed."""
    minimum_old_documents: int = Field(20, ge=2, le=1_000_000_000)
    """Different held-out documents of old text that a comparison needs. With fewer, the champion stays."""
    minimum_new_documents: int = Field(5, ge=2, le=1_000_000_000)
    """Different held-out documents of new text that a comparison needs. With fewer, the champion stays."""
    unit_bytes: int = Field(8192, ge=1, le=10**12)
    """A document counts by at most this many bytes, so that a few long documents do not decide alone."""


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
