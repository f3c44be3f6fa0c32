"""The settings of every stage, and ``RunConfig``, which holds them all.

One definition serves Python, TOML files, command-line flags and the form in the Prefect UI: a
field's docstring is its help text everywhere, and its bounds are enforced everywhere. Unknown keys
are refused, so a misspelt setting never trains with the default. section.py says which roles fields have.
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
"""Stands in ``corpus.paths`` for the folder of the running Python's standard library."""

_COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
_TEXT_KINDS = ("txt", "md", "py", "jsonl", "ndjson", "jsonlines", "json")
TEXT_PATTERNS = [f"*.{kind}{suffix}" for kind in _TEXT_KINDS for suffix in _COMPRESSIONS]
TEXT_PATTERNS += ["*.parquet", "*.arrow", "*.feather"]

DEFAULT_SOURCE = "corpus"
"""The name of the source that corpus.paths is."""

# One path is enough: web=texts/ on the command line.
_Paths = Annotated[list[Text], Field(min_length=1), BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


_LABELS = 2
"""Names in a corpus's label."""


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
    """More paths, by the name of their source, so that dataset.weights can mix them (wiki = ["wiki/"]); paths are
    the source corpus. A file that several name belongs to paths, else to the first of them by name."""
    include: list[Text] = TEXT_PATTERNS
    """File-name patterns that are read, in small letters or capitals. .jsonl, .ndjson, .jsonlines and .json are JSON
    lines, .parquet, .arrow and .feather are tables, all others plain text; .gz, .bz2, .xz and .zst are unpacked.
    Setting paths on the command line resets include, exclude, document and sample.prompts."""
    exclude: list[Text] = []
    """Names of files and folders to leave out, as patterns (site-packages, test*)."""
    exclude_documents: list[Text] = []
    """Documents to leave out: their hashes (16 hexadecimal digits), files of hashes, one a line, or files of documents,
    which are cut as the corpus is."""
    document: Literal["auto", "line", "paragraph", "file"] = "auto"
    """What one document of a plain text is. auto: in .txt a line or a paragraph, as the beginning of the file suggests;
    the whole file in everything else."""
    settle_seconds: float = Field(0.0, ge=0, le=86_400)
    """Seconds for which a local file must have been left alone. A younger one may be half-copied: it is left out this
    time, and ledgered as unsettled. 0: every file is read."""
    text_field: Text = Field("text", min_length=1)
    """The key of a JSON line, or the column of a table, that holds the text; meta.body is body within meta."""
    max_document_bytes: int = Field(16 * 2**20, ge=1, le=2**30)
    """Bytes. A longer document is streamed past and ledgered as too_long."""
    max_expansion: float = Field(500, ge=2, le=1e9)
    """Bytes of text from a stored byte. A compressed file beyond it is cut there, as decompression_bomb."""
    on_bad_input: Literal["quarantine", "fail"] = view("quarantine")
    """quarantine: what cannot be read is left out, kept aside and ledgered. fail: the first such piece ends the run."""
    normalize: Literal["", "NFC", "NFKC"] = ""
    """Unicode normalization of every text before it is tokenized (UAX #15). Empty: text stays as it is."""
    filter: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+)?$")
    """Dotted name of a Python function text -> bool; only documents it says yes to are kept. For Python and
    config files: deployments refuse it, since a form must never choose code."""
    min_bytes: int = Field(0, ge=0, le=2**30)
    """Bytes of text. Shorter documents are left out."""
    max_bytes: int = Field(2**30, ge=1, le=2**30)
    """Bytes of text. Longer documents are left out."""
    deduplicate: bool = False
    """Leave out all but one of the documents with the same text, across the whole corpus."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of documents held out, chosen by each document's own hash. Unused with validation_paths."""
    validation_paths: list[Text] = []
    """Files, folders and globs to validate on. Training documents that also stand there are left out."""
    chunk_bytes: int = Field(16_000_000, ge=1_000, le=2**30)
    """Bytes of text in a chunk of a large file on average: the unit of parallel work and of caching. Small files
    share chunks of a quarter."""
    workers: int = speed(0, ge=0, le=1024)
    """Threads that tokenize. 0: one for each core."""

    @property
    def label(self) -> str:
        """What a person would call it: the names of its sources, or the last names of its paths."""
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
    """bpe and unigram are SentencePiece's, byte_bpe is byte-level BPE as in GPT-2. bpe and byte_bpe are exact in plain
    transformers in both directions; unigram decodes exactly only here."""
    vocab_size: int = Field(8_000, ge=300, le=1_000_000)
    """Pieces to train, the 256 byte pieces and 6 special ones included. A small corpus may give fewer."""
    character_coverage: float = Field(0.9995, ge=0.9, le=1)
    """Share of characters that get a piece of their own; the rest are spelt in bytes. Unused by byte_bpe."""
    special_tokens: list[Text] = []
    """Control tokens of your own, such as <|user|>: ids from 6 on, in this order. Text never becomes one."""
    max_train_bytes: int = Field(100_000_000, ge=1_000, le=10_000_000_000)
    """Bytes of text to train on; of a larger corpus, the documents with the lowest hashes."""
    threads: int = Field(2, ge=1, le=256)
    """Training threads. Part of the result: SentencePiece is deterministic for a given number only."""

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
    """Visit the blocks of every epoch in a new random order."""
    weights: ByName[Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]] = {}
    """Share of an epoch's blocks by source (web 0.7, wiki 0.3); the sum need not be 1. Empty: as the text is."""
    epochs: ByName[Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]] = {}
    """Instead of weights: passes over each source in one epoch."""
    packing: Literal["stream", "best_fit"] = "stream"
    """stream: one block goes on where the last ended. best_fit: no document that fits a block is cut, at the price of
    padding (arXiv 2404.10830)."""
    document_masking: bool = False
    """Attention and positions begin anew with every document in a block, as they do in evaluation."""

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
    """Hidden size, the length of the vector of a token; a multiple of heads."""
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
    """The texts that the model writes, for the report and while it is trained."""

    model_config = ConfigDict(title="Sample")

    prompts: list[Text] = view([])
    """What the model continues, one sample each; one without text begins a document. None: the first words of three
    validation documents. A prompt that ends with a space is continued worse than one that ends with a word, since
    tokenizers join a space to the word after it."""
    every: int = view(0, ge=0, le=1_000_000_000, title="Sample every")
    """Steps between samples while training. 0: only after it."""
    tokens: int = view(200, ge=1, le=100_000)
    """Tokens to write at most."""
    temperature: float = view(0.8, ge=0, le=10)
    """Divides the logits before a token is drawn: higher is bolder. 0: always the likeliest token."""
    top_k: int = view(50, ge=0, le=1_000_000, title="Top-k")
    """Draw among this many likeliest tokens. 0: among all."""
    top_p: float = view(1.0, gt=0, le=1, title="Top-p")
    """Draw among the likeliest tokens that make up this probability (arXiv 1904.09751)."""
    seed: int = view(0, ge=0, le=2**31 - 1)
    """A number that chooses the draws: the same seed, the same text."""


class CardConfig(Section):
    """What the model card says that only you know."""

    model_config = ConfigDict(title="Model card")

    licence: Text = view("", max_length=100, pattern=r"^[A-Za-z0-9.+-]*$")
    """The model's licence, as the Hugging Face hub spells it (apache-2.0, cc-by-sa-4.0). Empty: the card says that none
    is stated."""
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,8}(-[A-Za-z0-9]{2,8})*$")]] = view([])
    """Codes of the languages of the text (ja, en)."""


def default_store() -> Path:
    """The folder named by the environment variable LM_STORE, else ./store."""
    return Path(os.environ.get("LM_STORE") or "store")


class RunConfig(Section):
    """Everything one run of the pipeline needs to know."""

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
    """What the model card says of licence and language."""
    store: TextPath = Field(default_factory=default_store, json_schema_extra={"role": "view"})
    """Folder of everything that is made. Default: the environment variable LM_STORE, else ./store."""
    run: str = view("", pattern=f"^({NAME})?$")
    """Name of the run. Empty: made from the settings and the dataset, so equal runs share a folder."""
    rehash: bool = view(False)
    """Read every file again, even where size and time say that it is unchanged."""
    fresh: bool = view(False)
    """Train again from the beginning, even where a checkpoint or a finished run is there."""
    when_locked: Literal["wait", "refuse"] = view("wait")
    """What a second start of a running run does: wait for the first to end, or fail at once."""

    @property
    def model_label(self) -> str:
        """What a person would call the model: gpt2 6x384, or that it begins with another."""
        if self.train.init_from:
            return f"from {_last_name(self.train.init_from)}"
        return f"{self.model.architecture} {self.model.layers}x{self.model.width}"
