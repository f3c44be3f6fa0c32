"""Sampling text from a model."""

import torch
from transformers import PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lmcore.config import SampleConfig
from lmcore.tokenizer import Tokenizer


@torch.no_grad()
def generate(model: PreTrainedModel, tokenizer: Tokenizer, config: SampleConfig, block_size: int) -> str:
    """The prompt and what the model writes after it, to the end of the document at most.

    The model sees the last ``block_size`` tokens, the document's beginning (EOS) among them while it fits.
    """
    device = model.device
    random = torch.Generator(device).manual_seed(config.seed)
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(config.prompt)]], device=device)
    was_training = model.training
    model.eval()
    for _ in range(config.tokens):
        logits_BV = model(input_ids=ids[:, -block_size:], use_cache=False).logits[:, -1].float()
        if config.temperature == 0:
            following = logits_BV.argmax(-1, keepdim=True)
        else:
            probabilities = _warpers(config)(ids, logits_BV).softmax(-1)
            following = torch.multinomial(probabilities, 1, generator=random)
        if following.item() == tokenizer.eos_id:
            break
        ids = torch.cat([ids, following], dim=1)
    model.train(was_training)
    return tokenizer.decode(ids[0, 1:].tolist())


def _warpers(config: SampleConfig) -> LogitsProcessorList:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(config.temperature)])
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    return warpers
