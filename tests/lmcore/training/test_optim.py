"""What is updated, how, and that nothing is where a step is skipped."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Module
from transformers.pytorch_utils import Conv1D

from lmcore.errors import StoreError
from lmcore.model.model import freeze_all_but, new_model
from lmcore.settings.config import TrainConfig
from lmcore.training.optim import Optimizers
from tests.conftest import Prepared

KINDS = ["adamw", "adam", "muon"]
GO, SKIP = torch.tensor(False), torch.tensor(True)


class Block(Module):
    """A model with one block, an embedding inside and outside of it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = torch.nn.Embedding(11, 6)
        inner = {"wide": torch.nn.Linear(6, 10), "back": Conv1D(6, 10), "norm": torch.nn.LayerNorm(6)}
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({**inner, "kinds": torch.nn.Embedding(2, 6)})])
        self.head = torch.nn.Linear(6, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        [block] = self.blocks
        inside = torch.relu(block["wide"](self.pieces(ids) + block["kinds"](ids % 2)))
        return self.head(block["norm"](block["back"](inside)))


def gradients(model: Module, seed: int) -> None:
    """The gradients of predicting seeded ids."""
    ids = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()


def new(kind: str = "adamw", **settings: Any) -> tuple[Module, Optimizers]:
    torch.manual_seed(0)
    model = Block()
    return model, Optimizers.from_config(model, TrainConfig.model_validate({"optimizer": kind, **settings}))


def unfuse(optimizers: Optimizers) -> Optimizers:
    for part in optimizers.parts:
        for group in part.param_groups:
            group |= {"fused": None} if "fused" in group else {}
    return optimizers


def step(model: Module, optimizers: Optimizers, seed: int, skip: Tensor = GO) -> None:
    gradients(model, seed)
    optimizers.step(skip)
    model.zero_grad()


def everything(model: Module, optimizers: Optimizers) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **optimizers.tensors(model)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def names(model: Module, part: torch.optim.Optimizer) -> dict[str, float]:
    """Weight decay by parameter."""
    of = {parameter: name for name, parameter in model.named_parameters()}
    return {of[p]: group["weight_decay"] for group in part.param_groups for p in group["params"]}


# --- which parameters ---


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_only_trained_matrices_decay(name: str, kind: type) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    model[2].requires_grad_(False)
    [part] = Optimizers.from_config(model, TrainConfig(optimizer=name, weight_decay=0.3)).parts  # type: ignore[arg-type]
    assert type(part) is kind
    assert names(model, part) == {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}
    assert part.param_groups[0]["betas"] == (0.9, 0.95)
    assert all(group["fused"] for group in part.param_groups)


def test_no_empty_group_when_only_vectors_are_trained() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    [part] = Optimizers.from_config(model, TrainConfig()).parts
    assert [group["params"] for group in part.param_groups] == [[model.bias]]


@pytest.mark.parametrize(
    ("architecture", "matrices"),
    [
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("llama", {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
        ("qwen3", {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
    ],
)
def test_muon_takes_the_matrices_inside_the_blocks(prepared: Prepared, architecture: str, matrices: set[str]) -> None:
    model = new_model(prepared.run(model={"architecture": architecture, "tie_embeddings": False, "layers": 2}))
    muon, adamw = Optimizers.from_config(model, TrainConfig(optimizer="muon", weight_decay=0.3)).parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    inside, rest = names(model, muon), names(model, adamw)
    blocks = "transformer.h" if architecture == "gpt2" else "model.layers"
    assert inside == {f"{blocks}.{i}.{matrix}.weight": 0.3 for i in (0, 1) for matrix in matrices}
    assert rest.keys() == {name for name, _ in model.named_parameters()} - inside.keys()
    assert {name for name, decay in rest.items() if decay} == {
        n for n, p in model.named_parameters() if p.ndim == 2
    } - (inside.keys())


def test_embeddings_inside_a_block_are_not_muons() -> None:
    model, optimizers = new("muon")
    assert list(names(model, optimizers.parts[0])) == ["blocks.0.wide.weight", "blocks.0.back.weight"]


@pytest.mark.parametrize(("pattern", "kinds"), [("*wide.weight", ["Muon"]), ("*bias", ["AdamW"]), ("head*", ["AdamW"])])
def test_an_optimizer_without_parameters_is_left_out(pattern: str, kinds: list[str]) -> None:
    model = Block()
    freeze_all_but(model, [pattern])  # type: ignore[arg-type]
    parts = Optimizers.from_config(model, TrainConfig(optimizer="muon")).parts
    assert [type(part).__name__ for part in parts] == kinds


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_stay_and_have_no_state(kind: str) -> None:
    model = Block()
    freeze_all_but(model, ["*.back.*", "pieces*"])  # type: ignore[arg-type]
    optimizers = Optimizers.from_config(model, TrainConfig(optimizer=kind, weight_decay=1))  # type: ignore[arg-type]
    before = copy.deepcopy(model)
    step(model, optimizers, 1)
    changed = {"blocks.0.back.weight", "blocks.0.back.bias", "pieces.weight"}
    assert {entry.rsplit("/", 1)[0] for entry in optimizers.tensors(model)} == changed
    for (name, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(now, then) == (name not in changed), name


# --- a step ---


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_decay_apart_from_the_gradient_or_in_it(name: str) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 2.0)
    settings = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    optimizers = Optimizers.from_config(model, settings)
    model.weight.grad = torch.zeros(1, 1)
    optimizers.step(GO)
    # With no gradient AdamW shrinks by rate * decay; Adam makes one normalized step of the rate's length.
    assert model.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) if name == "adamw" else 2 - 0.1, rel=1e-5)


def reference_muon(weight: Tensor, grads: list[Tensor], rate: float, decay: float, momentum: float) -> Tensor:
    """Muon after ``grads`` one after the other, in fp64: Nesterov momentum and five Newton-Schulz steps.

    Moonlight's form (arXiv 2502.16982), with the polynomial of kellerjordan.github.io/posts/muon: singular values of
    the update go to about 1, and 0.2 * sqrt(longer side) gives it the RMS of AdamW's.
    """
    buffer, weight = torch.zeros_like(weight, dtype=torch.float64), weight.double()
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad.double()
        update = momentum * buffer + (1 - momentum) * grad.double()
        update = update / update.norm()
        for _ in range(5):
            gram = update @ update.T
            update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
        weight = weight * (1 - rate * decay) - rate * 0.2 * max(weight.shape) ** 0.5 * update
    return weight


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_muon_against_a_reference(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleList([Conv1D(*shape)])
    settings: dict[str, Any] = {"learning_rate": 0.02, "weight_decay": 0.4, "muon_momentum": 0.9}
    optimizers = Optimizers.from_config(model, TrainConfig(optimizer="muon", **settings))
    start, grads = model[0].weight.detach().clone(), [torch.randn(shape[::-1]) for _ in range(3)]
    for grad in grads:
        model[0].weight.grad = grad.clone()
        optimizers.step(GO)
    expected = reference_muon(start, grads, 0.02, 0.4, 0.9)
    # torch orthogonalizes in bf16, whose numbers have three digits.
    assert (model[0].weight - expected).norm() < 0.02 * (expected - start).norm()
    # A transformers Conv1D is the transpose of a Linear, which is all the same to Muon.
    transposed = reference_muon(start.T, [grad.T for grad in grads], 0.02, 0.4, 0.9).T
    assert torch.allclose(expected, transposed)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 128)])
def test_muons_updates_have_the_size_of_adamws(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(*shape, bias=False)])
    optimizers = Optimizers.from_config(model, TrainConfig(optimizer="muon", learning_rate=1e-3, weight_decay=0))
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.randn(shape[::-1])
    optimizers.step(GO)
    size = (model[0].weight - before).pow(2).mean().sqrt().item()
    assert size == pytest.approx(0.2 * 1e-3, rel=0.25)  # RMS of AdamW's, as a rule (arXiv 2502.16982, 2.2)


def test_the_learning_rate_is_that_of_all_parts() -> None:
    model, optimizers = new("muon", weight_decay=0)
    optimizers.set_learning_rate(0.0)
    before = everything(model, optimizers)
    step(model, optimizers, 1)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    optimizers.set_learning_rate(0.1)
    step(model, optimizers, 1)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns(kind: str) -> None:
    model, optimizers = new(kind, learning_rate=1e-2, weight_decay=0.01)
    ids = torch.arange(11).repeat(3)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(ids[:-1]), ids[1:])
        losses.append(loss.item())
        loss.backward()
        optimizers.step(GO)
        model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert losses[-1] < 0.5 < 2 < losses[0]


# --- no step ---

FORMS = [("adamw", True), ("adamw", False), ("adam", True), ("adam", False), ("muon", True), ("muon", False)]


@pytest.mark.parametrize(("kind", "fused"), FORMS)
@pytest.mark.parametrize("broken", [False, True])
def test_where_a_step_is_skipped_nothing_changes(kind: str, fused: bool, broken: bool) -> None:
    model, optimizers = new(kind)
    if not fused:
        unfuse(optimizers)
    for seed in (1, 2):
        step(model, optimizers, seed)
    before = everything(model, optimizers)
    gradients(model, 3)
    if broken:
        for parameter in model.parameters():
            parameter.grad.fill_(torch.nan)
    optimizers.step(SKIP)
    assert_equal(everything(model, optimizers), before)


@pytest.mark.parametrize(("kind", "fused"), FORMS)
def test_skipped_steps_leave_no_trace_in_later_ones(kind: str, fused: bool) -> None:
    ends = []
    for skipped in ([], [0, 1], [1, 3]):
        model, optimizers = new(kind)
        if not fused:
            unfuse(optimizers)
        for seed in range(4):
            if seed in skipped:
                step(model, optimizers, 100 + seed, SKIP)
            step(model, optimizers, seed)
        ends.append(everything(model, optimizers))
    assert_equal(ends[0], ends[1])
    assert_equal(ends[0], ends[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_on_a_gpu_the_cpu_does_not_wait_to_know_whether_a_step_is_skipped(name: str) -> None:
    model = Block().cuda()
    optimizers = Optimizers.from_config(model, TrainConfig(optimizer=name))  # type: ignore[arg-type]
    never, always = GO.cuda(), SKIP.cuda()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(never)
    before = everything(model, optimizers)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizers.step(always)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(everything(model, optimizers), before)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_fused_kernel_is_torchs_adam(name: str) -> None:
    fused, plain = new(name), new(name)
    unfuse(plain[1])
    for seed in range(5):
        for each in (fused, plain):
            step(*each, seed)
    for mine, theirs in zip(fused[0].parameters(), plain[0].parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_fused_kernel_gives_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    def trained() -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(1003, 301)
        optimizers = Optimizers.from_config(model, TrainConfig())
        for _ in range(3):
            model.weight.grad, model.bias.grad = torch.randn(301, 1003), torch.randn(301)
            optimizers.step(GO)
        return model.weight.detach()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = trained()
        torch.set_num_threads(threads)
        assert torch.equal(trained(), single)
    finally:
        torch.set_num_threads(before)


# --- the state ---


def copied(model: Module, kind: str, **settings: Any) -> tuple[Module, Optimizers]:
    """The weights of ``model`` under new optimizers."""
    other, optimizers = new(kind, **settings)
    other.load_state_dict(model.state_dict())
    return other, optimizers


@pytest.mark.parametrize(("kind", "fused"), FORMS)
def test_the_state_goes_on_as_if_nothing_had_happened(kind: str, fused: bool) -> None:
    model, optimizers = new(kind)
    if not fused:
        unfuse(optimizers)
    for seed in (1, 2):
        step(model, optimizers, seed)
    other, of_other = copied(model, kind)
    if not fused:
        unfuse(of_other)
    step(other, of_other, 9)  # whatever was there is replaced
    other.load_state_dict(model.state_dict())
    of_other.load(optimizers.tensors(model), other)
    assert_equal(everything(model, optimizers), everything(other, of_other))
    for seed in (3, 4):
        for each in ((model, optimizers), (other, of_other)):
            step(*each, seed)
    assert_equal(everything(model, optimizers), everything(other, of_other))


def test_the_entries_of_the_state() -> None:
    model, optimizers = new("muon")
    assert optimizers.tensors(model) == {}
    step(model, optimizers, 1)
    keys = {name: set() for name, _ in model.named_parameters()}
    for entry in optimizers.tensors(model):
        name, key = entry.rsplit("/", 1)
        keys[name].add(key)
    adam, muon = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}
    matrices = ("blocks.0.wide.weight", "blocks.0.back.weight")
    assert keys == {name: muon if name in matrices else adam for name in keys}


def test_a_state_from_before_the_first_step_empties_a_later_one() -> None:
    model, optimizers = new()
    step(model, optimizers, 1)
    optimizers.load({}, model)
    assert optimizers.tensors(model) == {}


@pytest.mark.parametrize(
    ("saved", "own", "words"),
    [
        ("muon", "adamw", r"only it has .*/momentum_buffer \[10, 6\], .* \(AdamW\) has .*/exp_avg \[10, 6\]"),
        ("adamw", "muon", r"only it has .*/exp_avg \[10, 6\], .* \(Muon and AdamW\) has .*/momentum_buffer \[10, 6"),
    ],
)
def test_the_state_of_another_kind_is_refused_with_both_sides(saved: str, own: str, words: str) -> None:
    model, optimizers = new(saved)
    step(model, optimizers, 1)
    other, of_other = new(own)
    step(other, of_other, 2)
    before = everything(other, of_other)
    with pytest.raises(StoreError, match=words):
        of_other.load(optimizers.tensors(model), other)
    assert_equal(everything(other, of_other), before)


def test_the_state_of_another_model_or_of_frozen_parameters_is_refused() -> None:
    model, optimizers = new()
    step(model, optimizers, 1)
    tensors = optimizers.tensors(model)
    unknown = {"elsewhere/step": torch.tensor(1.0)}
    with pytest.raises(StoreError, match=r"only it has elsewhere/step \[\], .* has nothing"):
        optimizers.load(unknown, model)
    with pytest.raises(StoreError, match=r"has head.weight/exp_avg \[11, 5\], .* has head.weight/exp_avg \[11, 6\]"):
        optimizers.load({**tensors, "head.weight/exp_avg": torch.zeros(11, 5)}, model)
    with pytest.raises(StoreError, match=r"only it has nothing, .* \(AdamW\) has head.weight/exp_avg \[11, 6\]"):
        optimizers.load({entry: t for entry, t in tensors.items() if entry != "head.weight/exp_avg"}, model)
    model.head.requires_grad_(False)
    frozen = Optimizers.from_config(model, TrainConfig())
    with pytest.raises(StoreError, match=r"only it has head.weight/exp_avg .*, .* has nothing"):
        frozen.load(tensors, model)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_parameters_are_updated_skipped_and_loaded_alike(kind: str) -> None:
    def whole(model: Module, optimizers: Optimizers) -> dict[str, Tensor]:
        tensors = {**dict(model.named_parameters()), **optimizers.tensors(model)}
        return {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in tensors.items()}

    model, optimizers = new(kind)
    sharded = fully_shard(new(kind)[0], mesh=init_device_mesh("cpu", (1,)))
    of_sharded = Optimizers.from_config(sharded, TrainConfig(optimizer=kind))  # type: ignore[arg-type]
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    for seed, skip in enumerate((GO, GO, SKIP)):
        step(model, optimizers, seed, skip)
        step(sharded, of_sharded, seed, skip)
    assert_equal(whole(model, optimizers), whole(sharded, of_sharded))
    saved = optimizers.tensors(model)
    of_sharded.load(saved, sharded)
    assert_equal(whole(model, optimizers), whole(sharded, of_sharded))
    step(model, optimizers, 3)
    step(sharded, of_sharded, 3)
    assert_equal(whole(model, optimizers), whole(sharded, of_sharded))
