"""Sampling text from a model.

Shapes: P prompts, T tokens so far (shorter rows are padded on the left), V pieces in the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmcore.model.device import held_device
from lmcore.model.loss import inference
from lmcore.model.model import trained_model
from lmcore.runs.metrics import MetricsWriter, read_metrics
from lmcore.runs.run import Run
from lmcore.runs.sample_prompts import with_prompts
from lmcore.settings.config import SampleConfig
from lmcore.settings.section import fingerprint
from lmcore.store.json_files import write_lines
from lmcore.tokenizer.tokenizer import Tokenizer

_PROMPTS_AT_ONCE = 32


def generate(model: PreTrainedModel, tokenizer: Tokenizer, config: SampleConfig, block_size: int) -> list[str]:
    """Each prompt with its continuation, to the end of the document at most.

    Without prompts, the empty prompt is continued. The model sees the last ``block_size`` tokens. Each prompt has a
    random generator of its own, so its text does not depend on the other prompts, except for rounding.
    """
    prompts = [[tokenizer.eos_id, *tokenizer.encode(prompt)] for prompt in config.prompts or [""]]
    texts = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with _sampling(model):
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
            group = by_length[start : start + _PROMPTS_AT_ONCE]
            written = _continue(model, [prompts[index] for index in group], config, block_size, tokenizer.eos_id)
            for index, ids in zip(group, written, strict=True):
                texts[index] = tokenizer.decode(prompts[index][1:] + ids)
    return texts


def write_samples(run: Run, model: PreTrainedModel, step: int, metrics: MetricsWriter | None) -> None:
    """Let the model write the run's samples, and keep them in samples.jsonl as those of ``step``.

    Samples of this and later steps, from before a resume, are dropped. ``metrics`` writes the texts for TensorBoard.
    It is None on ranks that write nothing. They still compute, because a sharded model needs all ranks.
    """
    settings = with_prompts(run.config.sample, run)
    texts = generate(model, run.tokenizer(), settings, run.config.dataset.block_size)
    if metrics is None:
        return
    rows = [row for row in read_metrics(run.samples) if row["step"] < step]
    pairs = zip(settings.prompts, texts, strict=True)
    rows += [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]
    write_lines(run.samples, rows)
    for number, text in enumerate(texts, 1):
        metrics.write_text(f"samples/{number}", text, step)


def write_texts(run: Run, checkpoint: Path, settings: SampleConfig) -> list[str]:
    """The texts that a checkpoint generates for the prompts of ``settings``."""
    with held_device(run.config.train.device) as device:
        model = trained_model(run, checkpoint).to(device)
        return generate(model, run.tokenizer(), settings, run.config.dataset.block_size)


@contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """Run the model uncompiled, since every step has another shape, and with attention for caches and padding."""
    attention = model.config._attn_implementation
    is_for_training = attention not in ("sdpa", "eager")
    if is_for_training:
        model.set_attn_implementation("sdpa")
    try:
        with inference(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if is_for_training:
            model.set_attn_implementation(attention)


def _continue(
    model: PreTrainedModel, prompts: list[list[int]], config: SampleConfig, block_size: int, eos_id: int
) -> list[list[int]]:
    """The ids generated after each prompt, up to the first EOS."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[eos_id] * count + prompt for count, prompt in zip(padding, prompts, strict=True)]
    ids_PT, padding_P = (torch.tensor(each, device=model.device) for each in (rows, padding))
    # From seed and prompt: with one generator, prompts would influence each other.
    seeds = [int(fingerprint(config.seed, prompt), 16) for prompt in prompts]
    draws = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
    is_over_P, cache = torch.zeros_like(padding_P, dtype=torch.bool), None
    while ids_PT.shape[1] < longest + config.tokens and not is_over_P.all():
        # Keys and values are cached while all tokens fit into a block.
        fits = ids_PT.shape[1] <= block_size
        cache = cache if fits else None
        inputs = _inputs(ids_PT, padding_P, max(padding), block_size, 1 if cache is not None else block_size)
        output = model(past_key_values=cache, use_cache=fits, logits_to_keep=1, **inputs)
        cache = output.past_key_values
        following_P = _draw(output.logits[:, -1].float(), ids_PT, config, draws)
        is_over_P |= following_P == eos_id
        ids_PT = torch.cat([ids_PT, following_P.masked_fill(is_over_P, eos_id)[:, None]], dim=1)
    return [list(takewhile(lambda token: token != eos_id, row)) for row in ids_PT[:, longest:].tolist()]


def _inputs(ids_PT: torch.Tensor, padding_P: torch.Tensor, most: int, block_size: int, new: int) -> dict[str, Any]:
    """The last ``new`` tokens of the block that the model sees, with mask and positions if there is padding in it."""
    length, inputs = ids_PT.shape[1], {"input_ids": ids_PT[:, -new:]}
    first = max(0, length - block_size)
    if most <= first:
        return inputs
    mask_PT = torch.arange(first, length, device=ids_PT.device) >= padding_P[:, None]
    positions_PT = (mask_PT.cumsum(1) - 1).clamp(min=0)
    return inputs | {"attention_mask": mask_PT.long(), "position_ids": positions_PT[:, -new:]}


def _draw(
    logits_PV: torch.Tensor, ids_PT: torch.Tensor, config: SampleConfig, draws: list[torch.Generator]
) -> torch.Tensor:
    """One token for each row (P), drawn with the row's generator."""
    if config.temperature == 0:
        return logits_PV.argmax(-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(config.temperature)])
    warpers += [TopKLogitsWarper(config.top_k)] if config.top_k else []
    warpers += [TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    rows = zip(warpers(ids_PT, logits_PV).softmax(-1), draws, strict=True)
    return torch.cat([torch.multinomial(row_V, 1, generator=draw) for row_V, draw in rows])
