"""The instance loss, SqrtKL and the corrected bank update against the paper's equations written out."""

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from carryover.pretrain.objectives.instance import (
    InstanceTerms,
    class_probabilities,
    corrected_direction,
    instance_loss,
    proximal_loss,
    updated_rows,
)

TAU = 0.07
# Table 8: cross entropy alone, with L1, with L2, with both; and the recipe's lambda.
WEIGHTS = [(0.0, 1.0, 1.0), (20.0, 1.0, 0.0), (20.0, 0.0, 1.0), (20.0, 1.0, 1.0)]


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def case(images: int = 50, batch: int = 6, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    bank = unit(images, width, seed=0)
    index = torch.randperm(images, generator=torch.Generator().manual_seed(1))[:batch]
    return normalize(bank[index] + 0.7 * unit(batch, width, seed=2), dim=1), bank, index


def written_out(
    z: Tensor, bank: Tensor, index: Tensor, tau: float, lam: float, l1: float = 1.0, l2: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, cross entropy, KL(p, u) and p, with every class's probability in memory; u is a constant."""
    log_p = (z @ bank.T / tau).log_softmax(1)
    p = log_p.exp()
    log_u = (log_p / 2).log_softmax(1).detach()
    cross_entropy = -log_p[torch.arange(len(z)), index]
    first, second = (p * log_p).sum(1), -(p * log_u).sum(1)
    loss = (cross_entropy + lam * (l1 * first + l2 * second)).mean()
    return loss, cross_entropy.mean(), (first + second).mean(), p


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize(("lam", "l1", "l2"), WEIGHTS)
def test_loss_and_gradient_equal_autograd_over_all_classes(lam: float, l1: float, l2: float) -> None:
    z, bank, index = case()
    z.requires_grad_()
    expected, cross_entropy, sqrtkl, p = written_out(z, bank, index, TAU, lam, l1, l2)
    terms = instance_loss(z, bank, index, TAU, lam, l1, l2)
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(gradient(terms.loss, z), gradient(expected, z))
    torch.testing.assert_close(terms.cross_entropy, cross_entropy)
    torch.testing.assert_close(terms.sqrtkl, sqrtkl)
    torch.testing.assert_close(terms.batch_probabilities, p[:, index].T)
    torch.testing.assert_close(terms.accuracy, (p.argmax(1) == index).double().mean())
    assert 0 < terms.accuracy < 1


def test_only_the_loss_carries_a_gradient_and_it_follows_what_is_done_with_it() -> None:
    z, bank, index = case()
    z.requires_grad_()
    terms = instance_loss(z, bank.requires_grad_(), index, TAU, 20.0)
    assert not any(value.requires_grad for name, value in vars(terms).items() if name != "loss")
    expected = 3 * gradient(written_out(z, bank.detach(), index, TAU, 20.0)[0], z)
    (3 * terms.loss).backward()
    torch.testing.assert_close(z.grad, expected)
    assert bank.grad is None


# The paper's example: N = 10 and p = (0.91, 0.01, ...). With z = (1, ..., 1) and w_k = s_k e_k, the logits
# are s_k = log p_k and dL/dz_k = s_k dL/ds_k, so every class's gradient can be read off.
EXAMPLE_P = torch.tensor([0.91] + [0.01] * 9, dtype=torch.float64)


def example(lam: float) -> tuple[InstanceTerms, Tensor]:
    z = torch.ones(1, 10, dtype=torch.float64, requires_grad=True)
    logits = EXAMPLE_P.log()
    terms = instance_loss(z, torch.diag(logits), torch.tensor([0]), 1.0, lam)
    return terms, gradient(terms.loss, z)[0] / logits


def test_the_papers_example_flattens_p_into_u() -> None:
    u = EXAMPLE_P.sqrt() / EXAMPLE_P.sqrt().sum()
    printed = torch.tensor([0.5145] + [0.0539] * 9, dtype=torch.float64)
    torch.testing.assert_close(u, printed, rtol=0, atol=5e-5)
    kl = (EXAMPLE_P * (EXAMPLE_P / u).log()).sum()
    torch.testing.assert_close(example(1.0)[0].sqrtkl, kl)


def test_the_papers_example_has_the_gradients_of_eqs_23_and_24() -> None:
    cross_entropy_alone = example(0.0)[1]
    torch.testing.assert_close(cross_entropy_alone[1:], torch.full((9,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(cross_entropy_alone[0], EXAMPLE_P[0] - 1)
    of_sqrtkl = example(1.0)[1] - cross_entropy_alone
    printed = torch.full((9,), -0.021, dtype=torch.float64)
    torch.testing.assert_close(of_sqrtkl[1:], printed, rtol=0, atol=5e-4)


def test_sqrtkls_gradient_follows_from_eq_8_by_the_chain_rule_of_eq_21() -> None:
    p = EXAMPLE_P
    c = p.sqrt().sum()
    by_probability = 0.5 * p.log() + 1 + c.log()
    expected = p * (by_probability - (by_probability * p).sum())
    torch.testing.assert_close(example(1.0)[1] - example(0.0)[1], expected)


def test_the_corrected_direction_is_the_negative_gradient_of_the_batchs_loss_in_the_bank() -> None:
    z, bank, index = case()
    bank.requires_grad_()
    _, cross_entropy, _, p = written_out(z, bank, index, TAU, 0.0)
    per_row = -TAU * gradient(cross_entropy * len(z), bank)[index]
    terms = instance_loss(z, bank, index, TAU, 0.0)
    direction = corrected_direction(z, terms.batch_probabilities)
    torch.testing.assert_close(direction, per_row)

    by_eq_5 = torch.stack(
        [
            (1 - p[i, index[i]]) * z[i] - sum(p[j, index[i]] * z[j] for j in range(len(z)) if j != i)
            for i in range(len(z))
        ]
    )
    torch.testing.assert_close(direction, by_eq_5.detach())


def test_class_probabilities_of_a_gathered_batch_equal_those_of_one_process() -> None:
    z, bank, index = case()
    whole = instance_loss(z, bank, index, TAU, 20.0)
    parts = [instance_loss(z[half], bank, index[half], TAU, 20.0) for half in (slice(0, 3), slice(3, 6))]
    log_partition = torch.cat([part.log_partition for part in parts])
    gathered = class_probabilities(bank[index], z, log_partition, TAU)
    torch.testing.assert_close(gathered, whole.batch_probabilities)


def test_rows_move_by_eq_6_and_stay_on_the_sphere() -> None:
    rows, direction = unit(4, 8, seed=0), 0.3 * unit(4, 8, seed=1)
    updated = updated_rows(rows, direction, momentum=0.5)
    torch.testing.assert_close(updated.norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(updated, normalize(0.5 * rows + 0.5 * direction, dim=1))
    torch.testing.assert_close(updated_rows(rows, torch.zeros_like(rows), momentum=0.5), rows)


def test_the_proximal_term_is_eq_11() -> None:
    z, bank, index = case()
    z.requires_grad_()
    loss = proximal_loss(z, bank[index])
    torch.testing.assert_close(loss, torch.stack([(a - b).dot(a - b) for a, b in zip(z, bank[index])]).mean())
    torch.testing.assert_close(gradient(loss, z), 2 * (z.detach() - bank[index]) / len(z))


EXTREMES = {
    "near uniform": (10.0, 1.0),
    "ordinary": (0.07, 1.0),
    "learnt": (0.07, 0.3),
    "tau 0.01, learnt": (0.01, 1.2),
    "tau 0.01, far from its row": (0.01, 100.0),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize(("lam", "l1", "l2"), WEIGHTS)
def test_float32_gradient_is_within_1e_5_of_float64(name: str, lam: float, l1: float, l2: float) -> None:
    tau, noise = EXTREMES[name]
    bank = unit(3001, 32, seed=0).float()
    index = torch.arange(0, 3001, 190)
    z = normalize(bank[index] + noise * unit(16, 32, seed=1).float(), dim=1).requires_grad_()
    terms = instance_loss(z, bank, index, tau, lam, l1, l2)
    actual = gradient(terms.loss, z).double()

    z64 = z.detach().double().requires_grad_()
    expected, cross_entropy, sqrtkl, _ = written_out(z64, bank.double(), index, tau, lam, l1, l2)
    reference = gradient(expected, z64)
    assert (actual - reference).norm() <= 1e-5 * reference.norm()
    torch.testing.assert_close(terms.cross_entropy.double(), cross_entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.sqrtkl.double(), sqrtkl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prediction_near_one_hot_keeps_its_gradients_precision(dtype: torch.dtype) -> None:
    # 1 - p is about 1e-7 here: in float32, where 1 - p is computed by subtraction, nothing is left of it.
    bank = torch.tensor([[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8], [0.28, 0, 0.96]], dtype=dtype)
    z = torch.tensor([[0.96, 0.28, 0.0]], dtype=dtype)
    tau, lam, index = 0.01, 20.0, 0
    variable = z.clone().requires_grad_()
    terms = instance_loss(variable, bank, torch.tensor([index]), tau, lam)

    mpmath.mp.dps = 80
    rows = [[mpmath.mpf(float(x)) for x in row] for row in bank]
    start = [mpmath.mpf(float(x)) for x in z[0]]

    def probabilities(point: list[mpmath.mpf]) -> list[mpmath.mpf]:
        e = [mpmath.exp(sum(a * b for a, b in zip(point, row)) / tau) for row in rows]
        return [x / sum(e) for x in e]

    roots = [mpmath.sqrt(x) for x in probabilities(start)]
    u = [root / sum(roots) for root in roots]

    def loss(point: list[mpmath.mpf]) -> mpmath.mpf:
        p = probabilities(point)
        return -mpmath.log(p[index]) + lam * sum(a * mpmath.log(a / b) for a, b in zip(p, u))

    step = mpmath.mpf(10) ** -25
    moved = [[x + (step if i == k else 0) for i, x in enumerate(start)] for k in range(3)]
    back = [[x - (step if i == k else 0) for i, x in enumerate(start)] for k in range(3)]
    differences = [float((loss(a) - loss(b)) / (2 * step)) for a, b in zip(moved, back)]
    expected = torch.tensor(differences, dtype=torch.float64)
    assert 0 < expected.norm() < 1e-2
    actual = gradient(terms.loss, variable)[0]
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert (actual.double() - expected).norm() <= bound * expected.norm()


def test_a_single_image_has_nothing_to_learn() -> None:
    z = unit(1, 4, seed=0).requires_grad_()
    terms = instance_loss(z, unit(1, 4, seed=1), torch.tensor([0]), TAU, 20.0)
    assert terms.loss == 0
    assert terms.accuracy == 1
    assert (gradient(terms.loss, z) == 0).all()


def test_an_image_named_twice_in_a_batch_counts_twice() -> None:
    z, bank, index = case()
    index[1] = index[0]
    z.requires_grad_()
    expected = written_out(z, bank, index, TAU, 20.0)[0]
    terms = instance_loss(z, bank, index, TAU, 20.0)
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(gradient(terms.loss, z), gradient(expected, z))


def test_a_bank_stored_in_bfloat16_gives_the_loss_of_its_rounded_rows() -> None:
    z, bank, index = case()
    z, bank = z.float(), bank.bfloat16()
    terms = instance_loss(z, bank, index, TAU, 20.0)
    assert terms.loss.dtype == torch.float32
    torch.testing.assert_close(terms.loss, written_out(z, bank.float(), index, TAU, 20.0)[0])


def test_bfloat16_embeddings_under_autocast_are_worked_on_in_float32() -> None:
    z, bank, index = case()
    z, bank = z.bfloat16().requires_grad_(), bank.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = instance_loss(z, bank, index, TAU, 20.0)
    expected = written_out(z.float(), bank, index, TAU, 20.0)[0]
    torch.testing.assert_close(terms.loss, expected)
    assert gradient(terms.loss, z).dtype == torch.bfloat16


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation's result had storage for."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            owned = result.untyped_storage().nbytes() // result.element_size()
            self.largest = max(self.largest, owned)
        return result


def test_no_tensor_grows_with_queries_times_images() -> None:
    images, batch = 400_000, 64
    bank = torch.zeros(images, 2)
    z = torch.zeros(batch, 2, requires_grad=True)
    with LargestTensor() as seen:
        instance_loss(z, bank, torch.arange(batch), TAU, 20.0).loss.backward()
    assert seen.largest <= images * batch // 10
