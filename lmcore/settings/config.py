"""The settings of every stage, and ``RunConfig``, which holds them all.

One definition serves Python, TOML files, command-line flags and the form in the Prefect UI. The docstring of a field is
its help text everywhere, and its bounds are checked everywhere. Unknown keys are refused, so a misspelt setting never
trains with the default. section.py describes the roles of fields.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from lmcore.settings.section import NAME, ByName, Section, Text, TextPath, speed, view
from lmcore.settings.training import TrainConfig as TrainConfig

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>")
"""Ids 0 to 5 of a trained tokenizer."""

STANDARD_LIBRARY = "stdlib:"
"""In ``corpus.paths``: the folder of the running Python's standard library."""

_COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
_TEXT_KINDS = ("txt", "md", "py", "jsonl", "ndjson", "jsonlines", "json")
TEXT_PATTERNS = [f"*.{kind}{suffix}" for kind in _TEXT_KINDS for suffix in _COMPRESSIONS]
TEXT_PATTERNS += ["*.parquet", "*.arrow", "*.feather"]

DEFAULT_SOURCE = "corpus"
"""The name of the source that corpus.paths gives."""

# On the command line one path is enough: web=texts/
_Paths = Annotated[list[Text], Field(min_length=1), BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


_LABELS = 2
"""Names in the label of a corpus."""


def _last_name(path: str) -> str:
    """wiki of texts/wiki/*.jsonl and of s3://texts/wiki?region=x."""
    if path == STANDARD_LIBRARY:
        return path.rstrip(":")
    local = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    names = [name for name in re.sub(r"\?.*$", "", local).split("/") if name and not re.search(r"[*\[]", name)]
    return names[-1] if names else path


class CorpusConfig(Section):
    """Which text is read, and how it is cut into documents."""

    model_config = ConfigDict(title="Corpus")

    paths: list[Text] = []
    """Files, folders (read recursively), globs and URLs (s3://, gs://, hf://, https://). `stdlib:` is the
    running Python's standard library."""
    sources: ByName[_Paths] = {}
    """More paths by source name, so that dataset.weights can mix them (wiki = ["wiki/"]). The source of paths is called
    corpus. A file of several sources belongs to paths, else to the first source by name."""
    include: list[Text] = TEXT_PATTERNS
    """Patterns of file names to read, ignoring case. .jsonl, .ndjson, .jsonlines and .json are JSON lines, .parquet,
    .arrow and .feather are tables, all others are plain text; .gz, .bz2, .xz and .zst are unpacked. Setting paths on
    the command line resets include, exclude, document and sample.prompts."""
    exclude: list[Text] = []
    """Names of files and folders to leave out, as patterns (site-packages, test*)."""
    exclude_documents: list[Text] = []
    """Documents to leave out: hashes (16 hexadecimal digits), files of hashes, one a line, or files of documents, which
    are cut like the corpus."""
    document: Literal["auto", "line", "paragraph", "file"] = "auto"
    """What one document of a plain text is. auto: a line or a paragraph in .txt, as the beginning of the file suggests;
    the whole file otherwise."""
    settle_seconds: float = Field(0.0, ge=0, le=86_400)
    """Seconds since the last change of a local file. A younger file may be half-copied: it is left for the next start
    and counted as unsettled. 0: every file is read."""
    text_field: Text = Field("text", min_length=1)
    """The key of a JSON line, or the column of a table, that holds the text; meta.body is body within meta."""
    max_document_bytes: int = Field(16 * 2**20, ge=1, le=2**30)
    """Bytes. A longer document is skipped and counted as too_long."""
    max_expansion: float = Field(500, ge=2, le=1e9)
    """Bytes of text for each stored byte. A compressed file is cut there, as decompression_bomb."""
    on_bad_input: Literal["quarantine", "fail"] = view("quarantine")
    """quarantine: unreadable text is left out, kept aside and counted. fail: the first unreadable text ends the run."""
    normalize: Literal["", "NFC", "NFKC"] = ""
    """Unicode normalization of all text before it is tokenized (UAX #15). Empty: none."""
    filter: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+)?$")
    """Dotted name of a Python function text -> bool that decides which documents are kept. For Python and config files
    only: a form must never choose code, so deployments refuse it."""
    min_bytes: int = Field(0, ge=0, le=2**30)
    """Bytes of text. Shorter documents are left out."""
    max_bytes: int = Field(2**30, ge=1, le=2**30)
    """Bytes of text. Longer documents are left out."""
    deduplicate: bool = False
    """Keep one of the documents with the same text, across the whole corpus."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of documents held out for validation, chosen by document hash. Unused with validation_paths."""
    validation_paths: list[Text] = []
    """Files, folders and globs to validate on. Training documents with the same text are left out."""
    chunk_bytes: int = Field(16_000_000, ge=1_000, le=2**30)
    """Average bytes of text in a chunk of a large file. Chunks are the units of parallel work and of caching. Small
    files share chunks of a quarter."""
    workers: int = speed(0, ge=0, le=1024)
    """Threads that tokenize. 0: one for each core."""

    @property
    def label(self) -> str:
        """A short name: the names of the sources, or the last names of the paths."""
        names = [*dict.fromkeys(map(_last_name, self.paths)), *sorted(self.sources)] or ["no text"]
        return " and ".join(names if len(names) <= _LABELS else [*names[: _LABELS - 1], f"{len(names) - 1} more"])

    @property
    def source_names(self) -> list[str]:
        return ([DEFAULT_SOURCE] if self.paths else []) + sorted(self.sources)

    @model_validator(mode="after")
    def _sources_and_bounds_fit(self) -> Self:
        if self.paths and DEFAULT_SOURCE in self.sources:
            raise ValueError(f"sources: {DEFAULT_SOURCE} is the name of what paths gives; choose another")
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is above max_bytes {self.max_bytes}: nothing would be left")
        return self


class TokenizerConfig(Section):
    """Train a tokenizer, or load one."""

    model_config = ConfigDict(title="Tokenizer")

    source: Text = Field("train", min_length=1)
    """train: on the corpus. Otherwise a SentencePiece .model file, a transformers folder or a hub name."""
    model_type: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    """bpe and unigram: SentencePiece. byte_bpe: byte-level BPE as in GPT-2. In plain transformers bpe and byte_bpe are
    exact in both directions; unigram decodes with loss there."""
    vocab_size: int = Field(8_000, ge=300, le=1_000_000)
    """Pieces to train, including 256 byte pieces and 6 special ones. A small corpus may give fewer."""
    character_coverage: float = Field(0.9995, ge=0.9, le=1)
    """Share of characters that get their own piece; others are written in bytes. Unused by byte_bpe."""
    special_tokens: list[Text] = []
    """Your own control tokens, such as <|user|>, with ids from 6 on. Text never becomes a control token."""
    max_train_bytes: int = Field(100_000_000, ge=1_000, le=10_000_000_000)
    """Bytes of text to train on. Of a larger corpus the documents with the lowest hashes are used."""
    threads: int = Field(2, ge=1, le=256)
    """Training threads. They change the result: SentencePiece is deterministic only for a fixed number."""

    @model_validator(mode="after")
    def _special_tokens_fit(self) -> Self:
        for index, token in enumerate(self.special_tokens):
            if token.split() != [token]:
                raise ValueError(f"special_tokens: {token!r} is empty or holds white space")
            if token in (*SPECIAL_PIECES, *self.special_tokens[:index]) or re.fullmatch("<0x[0-9A-F]{2}>", token):
                raise ValueError(f"special_tokens: {token} stands for something else already, or is there twice")
        least = 256 + len(SPECIAL_PIECES) + len(self.special_tokens)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is less than the {least} bytes and special tokens")
        return self


class DatasetConfig(Section):
    """How the token stream becomes training blocks."""

    model_config = ConfigDict(title="Dataset")

    block_size: int = Field(256, ge=2, le=1_048_576)
    """Tokens in a block; also the longest context of the model."""
    shuffle: bool = True
    """Use the blocks of each epoch in a new random order."""
    weights: ByName[Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]] = {}
    """Share of an epoch's blocks by source (web 0.7, wiki 0.3). The sum need not be 1. Empty: all text once."""
    epochs: ByName[Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]] = {}
    """Instead of weights: passes over each source in one epoch."""
    packing: Literal["stream", "best_fit"] = "stream"
    """stream: a block continues where the last one ended. best_fit: no document that fits a block is cut, which needs
    padding (arXiv 2404.10830)."""
    document_masking: bool = False
    """Restart attention and positions at each document in a block, as in evaluation."""

    @property
    def is_mixture(self) -> bool:
        return bool(self.weights or self.epochs)

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        if self.weights and self.epochs:
            raise ValueError("weights and epochs are both given: a mixture has one of them")
        if self.is_mixture and not any((self.weights or self.epochs).values()):
            raise ValueError("weights or epochs are all 0: no source would be read")
        if self.is_mixture and not self.shuffle:
            raise ValueError("weights and epochs need shuffle: without it sources would not mix")
        return self


class ModelConfig(Section):
    """A transformers causal language model with new weights."""

    model_config = ConfigDict(title="Model", protected_namespaces=())

    architecture: Literal["gpt2", "llama", "qwen3"] = "gpt2"
    """The transformers model type."""
    layers: int = Field(6, ge=1, le=256)
    """Transformer blocks."""
    width: int = Field(384, ge=8, le=32_768)
    """Hidden size; a multiple of heads."""
    heads: int = Field(6, ge=1, le=256)
    """Attention heads of a layer."""
    kv_heads: int = Field(0, ge=0, le=256, title="Key and value heads")
    """Key and value heads, a divisor of heads (llama and qwen3). 0: as many as heads."""
    mlp_width: int = Field(0, ge=0, le=131_072, title="Feed-forward width")
    """Width of the feed-forward layer. 0: 4 x width for gpt2, 8/3 x width for the gated ones."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability while training (gpt2 everywhere; llama and qwen3 in attention only)."""
    tie_embeddings: bool = True
    """Input and output embeddings are one matrix."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kv_heads and (self.architecture == "gpt2" or self.heads % self.kv_heads):
            raise ValueError(
                f"kv_heads {self.kv_heads} needs llama or qwen3 and a multiple of it as heads "
                f"(here {self.architecture}, heads {self.heads})"
            )
        if self.architecture != "gpt2" and (self.width // self.heads) % 2:
            raise ValueError(f"width / heads = {self.width // self.heads} is odd; rotary positions need it even")
        return self


class SampleConfig(Section):
    """The texts that the model writes for the report and during training."""

    model_config = ConfigDict(title="Sample")

    prompts: list[Text] = view([])
    """Texts that the model continues, one sample each. An empty one begins a document. None: the first words of three
    validation documents. End a prompt with a word, not with a space: tokenizers join a space to the next word."""
    every: int = view(0, ge=0, le=1_000_000_000, title="Sample every")
    """Steps between samples during training. 0: samples only after training."""
    tokens: int = view(200, ge=1, le=100_000)
    """Largest number of tokens to write."""
    temperature: float = view(0.8, ge=0, le=10)
    """Divides the logits: higher is more random. 0: always the likeliest token."""
    top_k: int = view(50, ge=0, le=1_000_000, title="Top-k")
    """Draw among this many likeliest tokens. 0: among all."""
    top_p: float = view(1.0, gt=0, le=1, title="Top-p")
    """Draw among the likeliest tokens that make up this probability (arXiv 1904.09751)."""
    seed: int = view(0, ge=0, le=2**31 - 1)
    """Random seed: the same seed gives the same text."""


class CardConfig(Section):
    """Facts for the model card that only you know."""

    model_config = ConfigDict(title="Model card")

    licence: Text = view("", max_length=100, pattern=r"^[A-Za-z0-9.+-]*$")
    """The model's licence, as the Hugging Face hub spells it (apache-2.0, cc-by-sa-4.0). Empty: the card says that no
    licence is stated."""
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,8}(-[A-Za-z0-9]{2,8})*$")]] = view([])
    """Codes of the languages of the text (ja, en)."""


def default_store() -> Path:
    """The folder named by the environment variable LM_STORE, else ./store."""
    return Path(os.environ.get("LM_STORE") or "store")


class RunConfig(Section):
    """All settings of one run of the pipeline."""

    model_config = ConfigDict(title="Run")

    corpus: CorpusConfig = Field(CorpusConfig(), title="Corpus")
    """Which text is read."""
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), title="Tokenizer")
    """How text becomes token ids."""
    dataset: DatasetConfig = Field(DatasetConfig(), title="Dataset")
    """How token ids become blocks."""
    model: ModelConfig = Field(ModelConfig(), title="Model")
    """What is trained."""
    train: TrainConfig = Field(TrainConfig(), title="Training")
    """How it is trained."""
    sample: SampleConfig = Field(SampleConfig(), title="Sample")
    """What the trained model writes for the report."""
    card: CardConfig = Field(CardConfig(), title="Model card")
    """Licence and languages in the model card."""
    store: TextPath = Field(default_factory=default_store, json_schema_extra={"role": "view"})
    """Folder of all outputs. Default: the environment variable LM_STORE, else ./store."""
    run: str = view("", pattern=f"^({NAME})?$")
    """Name of the run. Empty: derived from settings and dataset, so equal runs share a folder."""
    rehash: bool = view(False)
    """Read every file again, even if its size and time are unchanged."""
    fresh: bool = view(False)
    """Train again from the beginning, even if there is a checkpoint or a finished run."""
    when_locked: Literal["wait", "refuse"] = view("wait")
    """What a second start of a running run does: wait until the first one ends, or fail at once."""

    @property
    def model_label(self) -> str:
        """A short name of the model: gpt2 6x384, or the initial model."""
        if self.train.init_from:
            return f"from {_last_name(self.train.init_from)}"
        return f"{self.model.architecture} {self.model.layers}x{self.model.width}"
