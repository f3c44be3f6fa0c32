"""The settings of every stage, and ``RunConfig``, which holds them all.

One definition serves Python, TOML files, command-line flags and the form in the Prefect UI: a
field's docstring is its help text everywhere, and its bounds are enforced everywhere. Unknown keys
are refused, so a misspelt setting never trains with the default. section.py says which roles fields have.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lmcore.settings.section import NAME, ByName, Location, Section, Text, TextPath, speed, view
from lmcore.settings.training import TrainConfig as TrainConfig
from lmcore.settings.urls import is_url

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>")
"""Ids 0 to 5 of a trained tokenizer."""

STANDARD_LIBRARY = "stdlib:"
"""In ``corpus.paths``: the folder of the running Python's standard library."""

TEXT_PATTERNS = [
    f"*.{kind}{compression}"
    for kind in ("txt", "md", "py", "jsonl", "ndjson", "jsonlines", "json")
    for compression in ("", ".gz", ".bz2", ".xz", ".zst")
] + ["*.parquet", "*.arrow", "*.feather"]

DEFAULT_SOURCE = "corpus"
"""The name of the source in corpus.paths."""

# One path is enough: web=texts/ on the command line.
_Paths = Annotated[list[Location], Field(min_length=1), BeforeValidator(lambda x: [x] if isinstance(x, str) else x)]


def _last_name(path: str) -> str:
    """The last name of a path: wiki for texts/wiki/*.jsonl and for s3://texts/wiki?region=x."""
    if path == STANDARD_LIBRARY:
        return path.rstrip(":")
    local = path if is_url(path) else os.path.abspath(os.path.expanduser(path))
    names = [name for name in re.sub(r"\?.*$", "", local).split("/") if name and not re.search(r"[*\[]", name)]
    return names[-1] if names else path


class CorpusConfig(Section):
    """Which text is read, and how it is cut into documents."""

    paths: list[Location] = []
    """Files, folders (read recursively), globs and URLs (s3://, gs://, hf://, https://). `stdlib:` is the standard
    library of the running Python."""
    sources: ByName[_Paths] = {}
    """More paths, by the name of their source, so that dataset.weights can mix them (wiki = ["wiki/"]). `paths` is the
    source named corpus. A file under several sources belongs to `paths`, else to the first source by name."""
    include: list[Text] = TEXT_PATTERNS
    """Patterns of file names to read; case is ignored. .jsonl, .ndjson, .jsonlines and .json are JSON lines, .parquet,
    .arrow and .feather are tables, all others plain text; .gz, .bz2, .xz and .zst are unpacked. Other paths on the
    command line reset include, exclude, document and sample.prompts."""
    exclude: list[Text] = []
    """Patterns of names of files and folders to leave out (site-packages, test*)."""
    exclude_documents: list[Location] = []
    """Documents to leave out: hashes (16 hexadecimal digits), files of hashes, or files of documents."""
    document: Literal["auto", "line", "paragraph", "file"] = "auto"
    """One document of plain text. auto: a line or a paragraph, as the start of a .txt file suggests; else the file."""
    settle_seconds: float = Field(0.0, ge=0, le=86_400)
    """Leave out local files that changed within this many seconds, because they may be half-copied. 0: none."""
    text_field: Text = Field("text", min_length=1)
    """The key of a JSON line, or the column of a table, that holds the text. meta.body is body within meta."""
    max_document_bytes: int = Field(16 * 2**20, ge=1, le=2**30)
    """Bytes. Longer documents are skipped; the ledger calls them too_long."""
    max_expansion: float = Field(500, ge=2, le=1e9)
    """Bytes of text from one stored byte. The rest of a compressed file is skipped as a decompression_bomb."""
    on_bad_input: Literal["quarantine", "fail"] = view("quarantine")
    """quarantine: text that cannot be read is kept aside and recorded in the ledger. fail: it ends the run."""
    normalize: Literal["", "NFC", "NFKC"] = ""
    """Unicode normalization of every text before it is tokenized (UAX #15). Empty: text is not changed."""
    min_bytes: int = Field(0, ge=0, le=2**30)
    """Bytes of text. Shorter documents are left out."""
    max_bytes: int = Field(2**30, ge=1, le=2**30)
    """Bytes of text. Longer documents are left out."""
    deduplicate: bool = False
    """Keep only one of the documents with the same text, across the whole corpus."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of documents held out for validation, chosen by each document's hash. Unused with validation_paths."""
    validation_paths: list[Location] = []
    """Files, folders and globs to validate on. Training documents that are also in them are left out."""
    chunk_bytes: int = Field(16_000_000, ge=1_000, le=2**30)
    """Average bytes of text in a chunk of a large file, which is encoded and cached as a whole."""
    workers: int = speed(0, ge=0, le=1024)
    """Threads that tokenize. 0: one for each core."""

    @property
    def label(self) -> str:
        """A short name for people: the names of its sources, or the last names of its paths."""
        first, *others = [*dict.fromkeys(map(_last_name, self.paths)), *sorted(self.sources)] or ["no text"]
        return " and ".join([first, *(others if len(others) < 2 else [f"{len(others)} more"])])

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

    source: Location = Field("train", min_length=1)
    """train: train on the corpus. Otherwise a SentencePiece .model file, a transformers folder or a hub name."""
    model_type: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    """bpe and unigram are SentencePiece's; byte_bpe is byte-level BPE as in GPT-2. Plain transformers decodes unigram
    with loss, the others exactly."""
    vocab_size: int = Field(8_000, ge=300, le=1_000_000)
    """Pieces to train, including the 256 byte pieces and 6 special ones. A small corpus may give fewer."""
    character_coverage: float = Field(0.9995, ge=0.9, le=1)
    """Share of characters with a piece of their own; the rest are spelt in bytes. Unused by byte_bpe."""
    special_tokens: list[Text] = []
    """Control tokens of your own, such as <|user|>. They have ids from 6 on, in this order. Text never becomes one."""
    max_train_bytes: int = Field(100_000_000, ge=1_000, le=10_000_000_000)
    """Bytes of text to train on. Of a larger corpus, the documents with the lowest hashes are used."""
    threads: int = Field(2, ge=1, le=256)
    """Training threads. They are part of the result: SentencePiece is deterministic only for a given number."""

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

    block_size: int = Field(256, ge=2, le=1_048_576)
    """Tokens in a block. This is also the longest context of the model."""
    shuffle: bool = True
    """Read the blocks of every epoch in a new random order."""
    weights: ByName[Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]] = {}
    """Share of each source in an epoch's blocks (web 0.7, wiki 0.3), of any sum. Empty: in proportion to the text."""
    packing: Literal["stream", "best_fit"] = "stream"
    """stream: each block continues where the last one ended. best_fit: no document that fits a block is cut, but
    blocks are padded (arXiv 2404.10830)."""
    document_masking: bool = False
    """Restart attention and positions at each document in a block, as in evaluation."""

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights are all 0: no source would be read")
        if self.weights and not self.shuffle:
            raise ValueError("weights need shuffle: without it sources would not mix")
        return self


class ModelConfig(Section):
    """A transformers causal language model with new weights."""

    architecture: Literal["gpt2", "llama", "qwen3"] = "gpt2"
    """The transformers model type."""
    layers: int = Field(6, ge=1, le=256)
    """Transformer blocks."""
    width: int = Field(384, ge=8, le=32_768)
    """Hidden size: the length of a token's vector. A multiple of heads."""
    heads: int = Field(6, ge=1, le=256)
    """Attention heads in a layer."""
    kv_heads: int = Field(0, ge=0, le=256)
    """Key and value heads, a divisor of heads (llama and qwen3). 0: the same as heads."""
    mlp_width: int = Field(0, ge=0, le=131_072)
    """Width of the feed-forward layer. 0: 4 x width for gpt2, 8/3 x width for the gated ones."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability in training (gpt2: everywhere; llama and qwen3: in attention only)."""
    tie_embeddings: bool = True
    """Use one matrix for input and output embeddings."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kv_heads and (self.architecture == "gpt2" or self.heads % self.kv_heads):
            here = f"(here {self.architecture}, heads {self.heads})"
            raise ValueError(f"kv_heads {self.kv_heads} needs llama or qwen3 and a multiple of it as heads {here}")
        if self.architecture != "gpt2" and (self.width // self.heads) % 2:
            raise ValueError(f"width / heads = {self.width // self.heads} is odd; rotary positions need it even")
        return self


class SampleConfig(Section):
    """The texts that the model writes for the report and during training."""

    prompts: list[Text] = view([])
    """Texts that the model continues, one sample each. They end with a word, not with a space. An empty prompt begins a
    document. No prompts: the first words of three validation documents."""
    every: int = view(0, ge=0, le=1_000_000_000)
    """Steps between samples during training. 0: only after training."""
    tokens: int = view(200, ge=1, le=100_000)
    """Most tokens to write."""
    temperature: float = view(0.8, ge=0, le=10)
    """Divides the logits before a token is drawn. Higher is more varied. 0: always the most likely token."""
    top_k: int = view(50, ge=0, le=1_000_000)
    """Draw from this many most likely tokens. 0: from all."""
    top_p: float = view(1.0, gt=0, le=1)
    """Draw from the most likely tokens that together have this probability (arXiv 1904.09751)."""
    seed: int = view(0, ge=0, le=2**31 - 1)
    """Seed of the draws: the same seed gives the same text."""


class CardConfig(Section):
    """What only you can say in the model card."""

    licence: Text = view("", max_length=100, pattern=r"^[A-Za-z0-9.+-]*$")
    """The model's licence, as the Hugging Face hub spells it (apache-2.0, cc-by-sa-4.0). Empty: none is stated."""
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,8}(-[A-Za-z0-9]{2,8})*$")]] = view([])
    """Codes of the languages of the text (ja, en)."""


def default_store() -> Path:
    """The folder named by the environment variable LM_STORE, else ./store."""
    return Path(os.environ.get("LM_STORE") or "store")


class RunConfig(Section):
    """Everything one run of the pipeline needs to know."""

    corpus: CorpusConfig = CorpusConfig()
    """Which text is read."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes token ids."""
    dataset: DatasetConfig = DatasetConfig()
    """How token ids become blocks."""
    model: ModelConfig = ModelConfig()
    """What is trained."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    sample: SampleConfig = SampleConfig()
    """What the trained model writes for the report."""
    card: CardConfig = CardConfig()
    """What the model card says about licence and languages."""
    store: TextPath = Field(default_factory=default_store, json_schema_extra={"role": "view"})
    """Folder for all results. Default: the environment variable LM_STORE, else ./store."""
    run: str = view("", pattern=f"^({NAME})?$")
    """Name of the run. Empty: made from the settings and the dataset, so equal runs share a folder."""
    rehash: bool = view(False)
    """Read every file again, even if its size and time are unchanged."""
    fresh: bool = view(False)
    """Train again from the beginning, even if a checkpoint or a finished run exists."""
    when_locked: Literal["wait", "refuse"] = view("wait")
    """What a second start of a running run does: wait for the first one, or fail at once."""

    @property
    def model_label(self) -> str:
        """A short name for people: gpt2 6x384, or the model that it starts from."""
        if self.train.init_from:
            return f"from {_last_name(self.train.init_from)}"
        return f"{self.model.architecture} {self.model.layers}x{self.model.width}"
