"""Writing a trained model as a folder that transformers opens, and opening a model from such a folder."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from lmcore.errors import ConfigError, StoreError, TokenizerError
from lmcore.model.model import trained_model
from lmcore.runs.initial_model import control_ids
from lmcore.runs.model_card import CARD, model_card, training_facts
from lmcore.runs.run import Export, Run, TrainingResult, newest_checkpoint
from lmcore.runs.scores import Evaluation
from lmcore.runs.seen_documents import SEEN_DOCUMENTS
from lmcore.store.allowed_paths import check_folder_allowed
from lmcore.store.artifacts import MANIFEST, find_artifact, verify_artifact, write_artifact
from lmcore.store.files import remove
from lmcore.tokenizer.export_files import trained_on_form, write_config, write_tokenizer
from lmcore.tokenizer.tokenizer import Tokenizer
from lmcore.tokenizer.transformers_view import open_in_transformers

_LAYOUT = 2
"""Version of the files of an export (export_files.py). An export of another version is replaced."""
_UNSTATED_POSITIONS = 2048
"""Longest context of a model whose config.json does not state one."""


def export(training: TrainingResult, evaluation: Evaluation) -> Export:
    """The folder runs/<run>/model. It is written unless it holds these weights and this card."""
    run = Run.open(training.folder)
    folder = run.folder / "model"
    about: dict[str, Any] = {"kind": "model", "run": training.run, "weights": training.weights, "layout": _LAYOUT}
    about |= {"identity": run.identity, "card": run.config.card.model_dump()}
    found = find_artifact(folder)
    if found and found.items() >= about.items():
        return Export(model_dir=folder)
    remove(folder)
    model = trained_model(run, training.checkpoint)
    model.generation_config = _generation_config(run)
    model.config.update(control_ids(run.tokenizer_info))  # also where the shape came from elsewhere
    with write_artifact(folder, lambda: about) as temporary:
        model.save_pretrained(temporary)
        write_config(temporary / "config.json")
        write_tokenizer(run.tokenizer_folder, temporary, run.config.dataset.block_size, run.config.corpus.normalize)
        if (run.folder / SEEN_DOCUMENTS).exists():
            shutil.copy(run.folder / SEEN_DOCUMENTS, temporary)
        (temporary / CARD).write_text(_card(run, model, training, evaluation), encoding="utf-8")
    return Export(model_dir=folder)


def open_model(folder: Path) -> tuple[PreTrainedModel, Tokenizer, int]:
    """The model in a folder, its tokenizer, and the tokens in its longest context.

    The folder is an export, a checkpoint, or a run: then it is the run's best checkpoint, or its newest one.

    Raises StoreError when a run has no checkpoint or what we wrote is damaged, ConfigError when it is no model that
    transformers opens, TokenizerError when it has no tokenizer or no end of text.
    """
    folder = weights_folder(folder)
    if (folder / "state.json").exists():
        run = Run.open(folder.absolute().parents[1])
        verify_artifact(folder)
        return trained_model(run, folder), run.tokenizer(), run.config.dataset.block_size
    return _of_export(folder)


def weights_folder(folder: Path) -> Path:
    """The folder itself, or of a run what it trained best, or its newest checkpoint.

    Raises StoreError when a run has no checkpoint, and ConfigError when it is outside LM_DATA_ROOTS.
    """
    check_folder_allowed(folder, "model")
    if not (folder / "checkpoints").is_dir():
        return folder
    run = Run.open(folder)
    result = TrainingResult.load(run.folder)
    checkpoint = result.checkpoint if result is not None else newest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise StoreError(f"{folder} has no checkpoint yet")
    check_folder_allowed(checkpoint, "model")
    return checkpoint


def _of_export(folder: Path) -> tuple[PreTrainedModel, Tokenizer, int]:
    manifest = verify_artifact(folder) if (folder / MANIFEST).exists() else {}
    tokenizer_id = manifest.get("identity", {}).get("tokenizer_id", "")
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no model: it is neither a run nor a checkpoint, nor an export or another folder with a "
            f"config.json and sound safetensors that transformers opens (pickled weights are never read): {error}"
        ) from None
    config = model.config.get_text_config()
    special = {"eos_id": _end_of_text(folder, config), "pad_id": config.pad_token_id}
    about = {"id": tokenizer_id, "vocab_size": config.vocab_size, **special}
    tokenizer = Tokenizer(folder, about, trained_on_form(folder))
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return model, tokenizer, positions or _UNSTATED_POSITIONS


def _end_of_text(folder: Path, config: PretrainedConfig) -> int:
    """By the model's config, or by the tokenizer where that says none or several."""
    if isinstance(config.eos_token_id, int):
        return config.eos_token_id
    found = open_in_transformers(folder).eos_token_id
    if found is None:
        raise TokenizerError(f"{folder} names no end of text: neither its config.json (eos_token_id) nor its tokenizer")
    return int(found)


def _generation_config(run: Run) -> GenerationConfig:
    """Defaults that stay inside the context, prompt and answer together."""
    tokenizer = run.tokenizer_info
    return GenerationConfig(
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        max_length=run.config.dataset.block_size,
        do_sample=True,
        temperature=0.8,
        top_k=50,
    )


def _card(run: Run, model: PreTrainedModel, training: TrainingResult, evaluation: Evaluation) -> str:
    shape, origin = model.config.get_text_config(), run.config.train.init_from
    beginning = f"from the weights of {Path(origin).name}" if origin else "from scratch"
    about = (
        f"A {shape.model_type} language model with {training.parameters:,} parameters ({shape.num_hidden_layers} "
        f"layers, {shape.hidden_size} wide), trained {beginning} on {training.tokens:,} tokens."
    )
    facts = [*training_facts(training.model_dump(), evaluation.model_dump(), run.config)]
    facts += [("dataset", run.identity["dataset_id"]), ("tokenizer", run.identity["tokenizer_id"])]
    return model_card(training.run, run.config, about, facts)
