"""The training engine beside its peers: python tests/benchmarks/training.py [SECTION ...] [--size tiny|small|124M|350M]

One script for CPU and GPU. Loops run in processes of their own, which take turns round by round; a figure is the median
of the rounds. The model is GPT-2 of transformers at the same shape for all, the data the same ids. On a GPU all is in
bf16 (autocast), on a CPU in fp32; ratios go by the clock on a GPU, by the CPU seconds of all threads on a CPU.

Needs no Prefect and no installation: set PYTHONPATH to the repository, with torch, transformers, safetensors, numpy,
pyarrow, fsspec, sentencepiece, protobuf, rich, blake3, orjson, isal, backports.zstd, pydantic (with pydantic-core,
annotated-types, typing-inspection, typing-extensions) and pydantic-settings (with python-dotenv). Peers run in an
environment that the first run makes in tests/benchmarks/work; --here takes this Python, which then has accelerate and
lightning. The sections, all of them by default:
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from bench import IS_SMOKE, sized, table, with_lmcore
from processes import Figures, Loop, by_turns, median, median_ratio
from training_setting import SETTLE, SIZES, Setting

from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run

PEERS = sized(("hf_trainer", "nanogpt", "fabric", "tutorial"), ("nanogpt", "tutorial"))
SIZE_OF_MIB = 2**20


def throughput(setting: Setting) -> None:
    """our loop, transformers.Trainer, a loop like nanoGPT's, Fabric and the tutorial's; at equal settings and at own"""
    for is_equal in sized((True, False), (True,)):
        run = setting.run() if is_equal else setting.run_at_defaults()
        loops = {"ours": setting.ours(run)} | {name: setting.peer(name, is_equal) for name in PEERS}
        found = by_turns(loops, setting.rounds)
        title = "at equal settings, nothing compiled" if is_equal else "everybody at their defaults"
        _throughput_table(setting, title, found)


def _throughput_table(setting: Setting, title: str, found: dict[str, list[Figures]]) -> None:
    base = "wall" if setting.device == "cuda" else "cpu"
    fastest = min(PEERS, key=lambda name: median(found[name], base))
    rows = []
    for name in sorted(found, key=lambda name: -median(found[name], base)):
        speeds = [f"{setting.tokens / median(found[name], clock):,.0f}" for clock in ("cpu", "wall")]
        ratios = [f"{1 / median_ratio(found[name], found[other], base):.2f}" for other in (fastest, PEERS[0])]
        rows.append([name, *speeds, *ratios, _mib(found[name])])
    head = f"loop|tokens per CPU second|tokens/s|of the fastest peer ({fastest})|of {PEERS[0]}|peak MiB"
    table(f"Throughput, {title}", head, rows)


def _mib(rounds: list[Figures]) -> str:
    return f"{max(each['peak_bytes'] for each in rounds) / SIZE_OF_MIB:,.0f}"


def overhead(setting: Setting) -> None:
    """our loop over forward, backward and optimizer on one batch, in the same model, optimizer and precision"""
    run = setting.run(compile="auto")
    loops = {
        "forward, backward, optimizer": setting.ours(run, "bare", clip=False),
        "and clipping": setting.ours(run, "bare", clip=True),
        "our loop": setting.ours(run),
    }
    found = by_turns(loops, setting.rounds)
    bare = found["forward, backward, optimizer"]
    rows = []
    for name, rounds in found.items():
        figures = [f"{1e3 * median(rounds, clock) / setting.size.steps:.2f}" for clock in ("cpu", "wall")]
        over = [f"{100 * median_ratio(rounds, bare, clock) - 100:+.1f} %" for clock in ("cpu", "wall")]
        rows.append([name, *figures, *over])
    table("The loop over the bare step", "what|CPU ms a step|ms a step|over bare, CPU|over bare", rows)


def checkpoints(setting: Setting) -> None:
    """what one checkpoint adds, and its share of the time at one a minute"""
    period = SETTLE + setting.size.steps
    spec = {"warm_up": period - SETTLE - 1}  # so that every round begins with saving a checkpoint
    runs = {"without": setting.run(), "with": setting.run(checkpoint_every=period)}
    found = by_turns({name: setting.ours(run, **spec) for name, run in runs.items()}, setting.rounds)
    rows = [["the loop stands still", *_share(median(found["with"], "on_path"))]]
    for clock, name in (("wall", "added, until all is on disk"), ("cpu", "added, CPU seconds")):
        rows.append([name, *_share(median(found["with"], clock) - median(found["without"], clock))])
    newest = max(runs["with"].checkpoints.glob("step-*"))
    size = sum(file.stat().st_size for file in newest.iterdir()) / SIZE_OF_MIB
    seconds = median(found["with"], "wall")
    table(f"A checkpoint of {size:,.1f} MiB, in rounds of {seconds:.1f} s", "what|ms|share at one a minute", rows)


def _share(seconds: float) -> list[str]:
    return [f"{1e3 * seconds:.1f}", f"{100 * seconds / 60:.2f} %"]


def resume(setting: Setting) -> None:
    """python -m lmcore train is killed and started again: until its first new step"""
    rows = []
    for how in ("off", "model") if setting.device == "cuda" else ("off",):
        run = setting.run(compile=how, log_every=1, checkpoint_every=5)
        _end(_until_step(run, 12))
        start = time.perf_counter()
        step = max(int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*"))
        child = _until_step(run, step + 1)
        seconds = time.perf_counter() - start
        _end(child)
        feed = setting.told_by_ours("feeding", run=str(run.folder), step=step)["seconds"]
        rows.append([f"compile {how}", f"{step}", f"{seconds:.2f}", f"{_seconds_to_import():.2f}", f"{1e3 * feed:.1f}"])
    head = "what|from the checkpoint of step|seconds from kill to first new step|imports|ms to the first batch"
    table("Starting again", head, rows)


def _seconds_to_import() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import lmcore.training.train"], env=with_lmcore(), check=True)
    return time.perf_counter() - start


def _until_step(run: Run, step: int) -> "subprocess.Popen[bytes]":
    """A training that has just written a row of ``step``; the file of rows is begun anew by every start."""
    before = run.metrics.stat().st_ino if run.metrics.exists() else 0
    command = [sys.executable, "-m", "lmcore", "train", str(run.folder)]
    with open(run.folder / "output.txt", "wb") as output:
        child = subprocess.Popen(command, env=with_lmcore(), stdout=output, stderr=output, start_new_session=True)
    while child.poll() is None:
        time.sleep(0.002)
        is_new = run.metrics.exists() and run.metrics.stat().st_ino != before
        if is_new and any(row["step"] >= step for row in read_metrics(run.metrics)):
            return child
    sys.exit(f"the training ended by itself:\n{(run.folder / 'output.txt').read_text()}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def memory(setting: Setting) -> None:
    """peak memory with the loss in chunks and with whole logits, against transformers.Trainer"""
    loops: dict[str, Callable[[], Loop]] = {
        "ours, loss in chunks": lambda: setting.ours(setting.run()),
        "ours, loss in chunks of 512": lambda: setting.ours(setting.run(loss_chunk_tokens=512)),
        "ours, whole logits": lambda: setting.ours(setting.run(loss_chunk_tokens=0)),
        "ours, loss in chunks, gradient checkpointing": lambda: setting.ours(setting.run(gradient_checkpointing=True)),
        PEERS[0]: lambda: setting.peer(PEERS[0], is_equal=True),
    }
    names = sized(list(loops), list(loops)[-2:])
    rows = [[name, _mib(by_turns({name: loops[name]()}, 1)[name])] for name in names]
    what = "of the GPU's memory" if setting.device == "cuda" else "of the process, 400 MiB of it libraries"
    table(f"Peak memory, {what}; equal settings, nothing compiled", "what|MiB", rows)


VARIANTS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "eager": ({"compile": "off"}, {}),
    "eager, attention of transformers": ({"compile": "off"}, {"attention": "sdpa"}),
    "blocks compiled": ({"compile": "blocks"}, {}),
    "model compiled": ({"compile": "model"}, {}),
    "model compiled, attention of transformers": ({"compile": "model"}, {"attention": "sdpa"}),
    "model compiled, whole logits": ({"compile": "model", "loss_chunk_tokens": 0}, {}),
}


def variants(setting: Setting) -> None:
    """ours eager and compiled, our attention path and transformers', loss in chunks and not: MFU, memory, data wait"""
    rows = []
    for name, (train, more) in VARIANTS.items():
        if IS_SMOKE and train["compile"] != "off":
            continue  # compiling takes a minute
        run = setting.run(**train)
        loop = setting.ours(run, **more)
        found = by_turns({name: loop}, setting.rounds)[name]
        speed = setting.tokens / median(found, "wall")
        mfu = speed * loop.about["flops_per_token"] / setting.matmul_tflops / 1e12
        wait, begun = setting.data_wait_share(run), loop.seconds_to_first_steps
        rows.append([name, f"{speed:,.0f}", f"{100 * mfu:.1f} %", _mib(found), f"{100 * wait:.2f} %", f"{begun:.0f}"])
    kind = {"cuda": "bf16", "cpu": "fp32"}[setting.device]
    head = "variant|tokens/s|MFU|peak MiB|data wait|seconds to the first steps"
    table(f"Ours in variants; MFU against {setting.matmul_tflops:.3g} TFLOP/s of a {kind} product", head, rows)
    if setting.device != "cuda":
        print(
            "\nNo GPU: MFU is against the CPU's product in fp32, memory is the process's, bf16 and flash are not used."
        )


SECTIONS = {work.__name__: work for work in (throughput, overhead, checkpoints, resume, memory, variants)}


def main() -> None:
    sections = "\n".join(f"    {name:12} {work.__doc__}" for name, work in SECTIONS.items())
    parser = argparse.ArgumentParser(
        description=__doc__ + sections, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--size", default=sized("tiny", "smoke"), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=sized(3, 1))
    parser.add_argument("--batch", type=int, help="blocks in a batch, other than the size's")
    parser.add_argument("--steps", type=int, help="in a round, other than the size's")
    parser.add_argument("--corpus", help="text to train on; default: words that do not exist")
    parser.add_argument("--here", action="store_true", help="peers run in this Python")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are\n{sections}")
    setting = Setting(options)
    device = torch.cuda.get_device_name() if setting.device == "cuda" else f"{os.cpu_count()} cores"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{device}, {platform.machine()}, Python {platform.python_version()}, {packages}; {time.strftime('%F')}")
    print(f"GPT-2 {options.size}: {setting.size}, {setting.precision}, {setting.rounds} rounds")
    for name in options.sections or SECTIONS:
        SECTIONS[name](setting)


if __name__ == "__main__":
    main()
