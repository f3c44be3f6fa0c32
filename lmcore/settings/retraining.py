"""The settings of a retraining: when a model is trained again, and when its challenger takes the champion's place."""

from typing import Literal

from pydantic import ConfigDict, Field

from lmcore.settings.config import RunConfig
from lmcore.settings.section import NAME, Section

Start = Literal["trunk", "export", "scratch"]


class RetrainingConfig(Section):
    """When a model is trained again, and how."""

    model_config = ConfigDict(title="Retraining", protected_namespaces=())

    model_name: str = Field("lm", pattern=f"^{NAME}$")
    """Name of the model whose versions are kept: models/NAME in the store."""
    min_new_bytes: int = Field(100_000, ge=1, le=10**15)
    """Bytes of new training text below which nothing is trained."""
    start: Start = "export"
    """What a challenger begins with. export: the champion's weights, warmed up again. trunk: its checkpoint before the
    decay of a wsd schedule, with the optimizer's state, or if there is none its export. scratch: nothing; it is trained
    on all of the text, as the first model is."""
    replay: float = Field(0.85, ge=0, lt=1)
    """Share of old text in what a challenger is trained on (arXiv 2403.08763)."""
    budget: float = Field(10.0, gt=0, le=1e6)
    """Tokens a challenger is trained on, replay included, as a multiple of the new text's tokens."""
    budget_minutes: float = Field(0.0, ge=0, le=1e6)
    """Minutes of training at the champion's speed, which the budget may not pass. 0: no such limit."""
    hub_repository: str = Field("", pattern=f"^({NAME}/{NAME})?$")
    """Repository on the Hugging Face hub, such as user/name, that holds the champion: each retraining puts it there
    unless it did so last. One that does not exist is made, private. The token is that of the environment variable
    HF_TOKEN. Empty: none."""


class GateConfig(Section):
    """When a challenger takes the champion's place."""

    model_config = ConfigDict(title="Gate")

    old_margin_bits_per_byte: float = Field(0.005, ge=0, le=1)
    """Bits per byte of old text by which a challenger may be worse, at the upper end of the confidence interval."""
    must_improve_new: bool = True
    """The challenger must be better on new text, the confidence interval clear of zero. Without it, the margin of old
    text is all that is asked for, and no new text is needed."""
    every_source: bool = False
    """The margin also holds on every source by itself, of old text and of new, where there are several."""
    minimum_documents: int = Field(200, ge=2, le=1_000_000_000)
    """Different documents of each text that is judged, below which the champion stays."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """Probability with which the two-sided intervals are to hold what is true."""
    resamples: int = Field(2000, ge=200, le=1_000_000)
    """Draws of the bootstrap: more make the ends of the intervals steadier."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """A number that chooses the draws: the same seed, the same intervals."""


class RetrainConfig(RunConfig):
    """Everything that a retraining needs to know; the other sections say how a model is trained from scratch."""

    model_config = ConfigDict(title="Retrain", protected_namespaces=())

    retraining: RetrainingConfig = Field(RetrainingConfig(), title="Retraining")
    """When a model is trained again, and how."""
    gate: GateConfig = Field(GateConfig(), title="Gate")
    """When a challenger takes the champion's place."""
    fresh_tokenizer: bool = False
    """Train another tokenizer, on all of the text, instead of the champion's. The challenger begins from scratch."""

    def run_config(self) -> RunConfig:
        """The settings of a run from scratch."""
        return RunConfig.model_validate(self.model_dump(include=set(RunConfig.model_fields)))
