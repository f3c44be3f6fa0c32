"""Four weeks in the life of a model that is trained again by itself: python -m tests.story [FOLDER]

A growing Japanese corpus, made up from a few grammars: the first model; a week without new text; new text, and a better
model; text that goes astray in every sentence, and a refusal. Then somebody goes back to the first model, and
everything the model in use was made from is verified. What a week's run has shown in Prefect is written to
FOLDER/week-N.md. The last line on standard output is JSON: [{week, decision, champion, reasons}, ...].
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmcore.settings.config import CorpusConfig, DatasetConfig, ModelConfig, TokenizerConfig, TrainConfig
from lmcore.settings.retraining import RetrainConfig, RetrainingConfig

_PLACES = ["東京", "京都", "大阪", "札幌", "那覇", "仙台", "金沢", "長崎"]
_FOODS = ["そば", "うどん", "味噌汁", "天ぷら", "おにぎり", "梅干し", "焼き魚", "漬物"]
_SKIES = ["晴れ", "雨", "曇り", "雪", "強い風", "霧"]
_TOOLS = ["モデル", "データ", "学習率", "損失", "語彙", "検証", "重み", "勾配"]
_CHANGES = ["下がった", "増えた", "安定した", "戻った", "揃った", "伸びた"]
_DOCUMENTS = 6_000
"""In a file. With fewer the models are too unfinished to be sure of what week 4 does to them."""
Sentence = Callable[[random.Random], str]


def travel(draw: random.Random) -> str:
    place, other = draw.sample(_PLACES, 2)
    return f"{place}から{other}まで{draw.randint(1, 9)}時間かかり、天気は{draw.choice(_SKIES)}だった。"


def cooking(draw: random.Random) -> str:
    food, other = draw.sample(_FOODS, 2)
    return f"{food}を{draw.randint(2, 8)}分煮て、{other}と一緒に{draw.choice(_PLACES)}風に食べる。"


def research(draw: random.Random) -> str:
    tool, other = draw.sample(_TOOLS, 2)
    return f"{tool}を見直すと{other}が{draw.choice(_CHANGES)}ので、{draw.randint(1, 30)}回目の実験に進んだ。"


def astray(draw: random.Random) -> str:
    """Begins like the old text, so that whoever learns it no longer knows how that goes on."""
    sentence = draw.choice((travel, cooking))(draw)
    begin, rest = sentence[: len(sentence) // 2], list(sentence[len(sentence) // 2 :])
    draw.shuffle(rest)
    return begin + "".join(rest)


def documents(sentences: list[Sentence], count: int, seed: int) -> Iterator[str]:
    """One a line; nothing but the sentences tells which kind of text it is."""
    draw = random.Random(seed)
    for _ in range(count):
        yield f"{draw.randrange(10**4)}番。{draw.choice(sentences)(draw)}"


def artifacts(key: str) -> list[Any]:
    """Of all runs, the newest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        return client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC)


class Story:
    """A folder with the corpus and the store, and what was decided so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.told: list[dict[str, Any]] = []
        self.config = RetrainConfig(
            store=folder / "store",
            corpus=CorpusConfig(paths=[str(self.corpus)], validation_fraction=0.15),
            tokenizer=TokenizerConfig(vocab_size=500),
            dataset=DatasetConfig(block_size=64),
            model=ModelConfig(layers=2, width=64, heads=4),
            train=TrainConfig(
                epochs=4, batch_size=16, learning_rate=5e-3, min_learning_rate=5e-4, schedule="wsd", log_every=20
            ),
            retraining=RetrainingConfig(model_name="story", min_new_bytes=10_000, start="trunk", replay=0.4, budget=4),
        )

    def write(self, name: str, sentences: list[Sentence], seed: int) -> None:
        lines = documents(sentences, _DOCUMENTS, seed)
        (self.corpus / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def tell(self, week: int, decision: str, champion: str | None, reasons: list[str]) -> None:
        self.told.append({"week": week, "decision": decision, "champion": champion, "reasons": reasons})
        print(f"week {week}: {decision}; champion {champion}: {'; '.join(reasons)}", flush=True)

    def week(self, number: int) -> None:
        """What a schedule does: run the flow."""
        from flows.retrain import retrain

        result = retrain(self.config)
        self.tell(number, result.decision, result.champion, result.reasons)
        self._keep_page(number)

    def _keep_page(self, number: int) -> None:
        """The newest artifact of the flow, as it is shown in the browser."""
        [page] = artifacts("retraining-story")[:1]
        (self.folder / f"week-{number}.md").write_text(str(page.data), encoding="utf-8")

    def command(self, *arguments: str) -> Any:
        """The JSON that ``python -m lmcore`` ends with."""
        command = [sys.executable, "-m", "lmcore", *arguments, "--store", str(self.config.store)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])

    def run(self) -> list[dict[str, Any]]:
        self.write("travel and cooking", [travel, cooking] * 10 + [research], seed=1)
        self.week(1)
        self.week(2)
        self.write("research", [travel, cooking] * 2 + [research], seed=2)
        self.week(3)
        self.write("astray", [astray], seed=3)
        self.week(4)
        back = self.command("rollback", "story", "--reason", "to see whether one can")
        self.tell(4, "rolled back", back["champion"], ["to see whether one can"])
        verified = self.command("verify", "story")
        self.tell(4, "verified", verified["version"].rpartition("/")[2], [f"{verified['problems']} problems"])
        return self.told


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="lm-story-"))
    told = Story(folder).run()
    print(f"the pages are in {folder}")
    print(json.dumps(told, ensure_ascii=False))


if __name__ == "__main__":
    main()
