"""The chunked loss is the plain one, in value and gradients, and its logits are never there whole."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmcore.model.loss import cross_entropy, linear_cross_entropy, token_nats

SIZES = st.integers(1, 40)
LOW = [torch.bfloat16, torch.float16]


def some_parts(n: int, c: int, v: int, bias: bool = True, ignored: float = 0.2, seed: int = 0) -> list[Any]:
    """hidden (N, C), weight (V, C), bias (V) or None, labels (N)."""
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=random).requires_grad_() for shape in [(n, c), (v, c), (v,)]]
    labels = torch.randint(0, v, (n,), generator=random)
    labels[torch.rand(n, generator=random) < ignored] = -100
    return [*tensors[:2], tensors[2] if bias else None, labels]


def linear_loss(hidden: Any, weight: Any, bias: Any, labels: torch.Tensor, chunk: int) -> torch.Tensor:
    """The loss by logits in chunks; 0: by whole logits."""
    if not chunk:
        return cross_entropy(functional.linear(hidden, weight, bias), labels)
    return linear_cross_entropy((hidden, weight, bias), labels, chunk)


def loss_and_gradients(parts: list[Any], chunk: int, low: torch.dtype | None = None, loss: Any = linear_loss) -> Any:
    for part in parts[:3]:
        if part is not None:
            part.grad = None
    with torch.autocast("cpu", dtype=low) if low else nullcontext():
        nats = loss(*parts, chunk)
    (nats * 0.3).backward()
    return [nats.detach(), *(part.grad for part in parts[:3] if part is not None)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], relative: float = 1e-6) -> None:
    """Each within ``relative`` of the expected one's largest number, or of 1: a sum's terms, whose rounding is left
    where they cancel."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).abs().max() <= relative * max(1, other.abs().max())


@settings(max_examples=60)
@given(n=SIZES, c=SIZES, v=st.integers(2, 60), chunk=st.integers(1, 50), bias=st.booleans(), seed=st.integers(0, 99))
def test_value_and_gradients_are_torchs(n: int, c: int, v: int, chunk: int, bias: bool, seed: int) -> None:
    parts = some_parts(n, c, v, bias, seed=seed)
    hidden, weight, offset, labels = parts
    found = loss_and_gradients(parts, chunk)
    expected = functional.cross_entropy(hidden @ weight.T + (0 if offset is None else offset), labels, reduction="sum")
    gradients = torch.autograd.grad(expected * 0.3, [part for part in parts[:3] if part is not None])
    assert_close(found, [expected.detach(), *gradients], 2e-6)


def test_a_sum_of_micro_batches_is_the_batch() -> None:
    parts = some_parts(30, 6, 11)
    hidden, weight, bias, labels = parts
    halves = [linear_loss(hidden[rows], weight, bias, labels[rows], 4) for rows in (slice(13), slice(13, 30))]
    torch.testing.assert_close(sum(halves), linear_loss(*parts, 4))


def test_no_labels_are_no_loss_and_no_gradient() -> None:
    parts = some_parts(10, 4, 6, ignored=2.0)
    nats, *gradients = loss_and_gradients(parts, 3)
    assert nats == 0.0
    assert not any(gradient.any() for gradient in gradients)


# --- low precision ---


@pytest.mark.parametrize("low", LOW, ids=str)
def test_in_low_precision_only_the_matrix_products_lose_digits(low: torch.dtype) -> None:
    parts = some_parts(64, 32, 50, ignored=0.0)
    exact, found = loss_and_gradients(parts, 0), loss_and_gradients(parts, 7, low)
    assert_close(found, exact, 8 * torch.finfo(low).eps)
    # The logits' own rounding is all that the loss has.
    hidden, weight, bias, labels = parts
    rounded = functional.linear(hidden.to(low), weight.to(low), bias.to(low)).float()
    torch.testing.assert_close(found[0], functional.cross_entropy(rounded, labels, reduction="sum"))


def test_a_frequent_piece_does_not_overflow_fp16() -> None:
    hidden, weight = torch.full((8192, 4), 30.0, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    parts = [hidden, weight, None, torch.zeros(8192, dtype=torch.long)]
    _, _, of_weight = loss_and_gradients(parts, 8192, torch.float16)
    torch.testing.assert_close(of_weight[0], torch.full((4,), -0.5 * 30 * 8192 * 0.3))


@pytest.mark.parametrize("low", LOW, ids=str)
def test_a_model_in_low_precision_has_gradients_of_its_own_kind(low: torch.dtype) -> None:
    hidden, weight, _, labels = some_parts(20, 8, 9)
    hidden, weight = (part.detach().to(low).requires_grad_() for part in (hidden, weight))
    nats = linear_loss(hidden, weight, None, labels, 6)
    nats.backward()
    assert (nats.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, low, low)


# --- what is wanted, and what is not ---


@pytest.mark.parametrize("frozen", [[0], [1], [2], [0, 1], [1, 2]], ids=str)
def test_frozen_parts_get_no_gradient_and_leave_the_others_theirs(frozen: list[int]) -> None:
    parts = some_parts(12, 5, 8)
    _, *expected = loss_and_gradients(parts, 5)
    for index in frozen:
        parts[index].requires_grad_(False)
    _, *found = loss_and_gradients(parts, 5)
    for index in range(3):
        assert (found[index] is None) == (index in frozen)
        assert found[index] is None or torch.equal(found[index], expected[index])


def test_without_gradients_none_is_computed() -> None:
    parts = some_parts(12, 5, 8)
    with torch.no_grad():
        nats = linear_loss(*parts, 5)
    assert not nats.requires_grad
    assert nats == linear_loss(*parts, 5).detach()
    frozen = [parts[0].detach(), parts[1].detach(), None, parts[3]]
    assert not linear_loss(*frozen, 5).requires_grad


def test_tied_weights_get_both_gradients() -> None:
    hidden, weight, _, labels = some_parts(12, 5, 8, ignored=0.0)
    ids = labels.roll(1)

    def gradient(chunk: int) -> torch.Tensor:
        return torch.autograd.grad(linear_loss(weight[ids] + hidden, weight, None, labels, chunk), weight)[0]

    torch.testing.assert_close(gradient(5), gradient(0))


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that anything made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=str)
def test_no_tensor_is_larger_than_a_chunks_logits(low: torch.dtype | None) -> None:
    tokens, width, pieces, chunk = 256, 4, 128, 16
    parts = some_parts(tokens, width, pieces)
    largest = {}
    for size in (0, chunk):
        with Largest() as made:
            loss_and_gradients(parts, size, low)
        largest[size] = made.numbers
    assert largest == {0: tokens * pieces, chunk: chunk * pieces}


def test_what_is_kept_for_the_backward_pass_is_no_logits() -> None:
    parts = some_parts(256, 4, 128)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        linear_loss(*parts, 16)
    assert sorted(kept) == [128, 128 * 4, 256 * 4]


# --- under the compiler ---


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does it
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [[], [1, 2]], ids=str)
def test_it_compiles_in_one_graph(low: torch.dtype | None, frozen: list[int]) -> None:
    parts = some_parts(25, 8, 30)
    for index in frozen:
        parts[index].requires_grad_(False)
    compiled = torch.compile(linear_loss, fullgraph=True, backend="aot_eager")
    found, expected = (loss_and_gradients(parts, 7, low, loss) for loss in (compiled, linear_loss))
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or (one - other).abs().max() <= 1e-6 * other.abs().max()


@settings(max_examples=40)
@given(n=SIZES, chunk=st.integers(1, 50), bias=st.booleans(), seed=st.integers(0, 99))
def test_the_nats_of_every_token_are_those_of_whole_logits(n: int, chunk: int, bias: bool, seed: int) -> None:
    hidden, weight, offset, labels = some_parts(n, 7, 30, bias, seed=seed)
    found = token_nats((hidden, weight, offset), labels, chunk)
    expected = cross_entropy(functional.linear(hidden, weight, offset), labels, "none")
    assert not found.requires_grad
    assert torch.equal(found == 0, labels == -100)
    assert_close(
        [found, found.sum()],
        [expected.detach(), cross_entropy(hidden @ weight.T + (0 if offset is None else offset), labels).detach()],
    )
