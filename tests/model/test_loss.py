"""Equation (5) and its terms against PyTorch's own, and by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from vlm.data.collate import IGNORED
from vlm.model import loss as terms
from vlm.model.loss import joint_loss, label_loss, text_loss


def test_label_loss_is_bce_over_the_known_labels() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    targets[0, 0] = targets[4] = math.nan
    known = ~torch.isnan(targets)
    loss = label_loss(logits, targets)
    assert loss.count == 11
    torch.testing.assert_close(loss.mean(), F.binary_cross_entropy_with_logits(logits[known], targets[known]))


def test_text_loss_is_cross_entropy_over_the_supervised_tokens() -> None:
    hidden, vocabulary = torch.randn(3, 7, 8, requires_grad=True), torch.randn(20, 8)
    labels = torch.randint(0, 20, (3, 7))
    labels[0, :4] = labels[1, :] = IGNORED
    loss, cases = text_loss(hidden, vocabulary, labels)
    logits = (hidden @ vocabulary.T)[:, :-1]
    reference = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(loss.mean(), reference)
    torch.testing.assert_close(cases.sum(), loss.total)
    assert cases[1] == 0 and loss.count == 9
    (gradient,) = torch.autograd.grad(loss.mean(), hidden, retain_graph=True)
    (wanted,) = torch.autograd.grad(reference, hidden)
    torch.testing.assert_close(gradient, wanted)


def test_nothing_to_learn_is_zero_and_not_nan() -> None:
    hidden = torch.randn(2, 4, 8, requires_grad=True)
    loss, cases = text_loss(hidden, torch.randn(20, 8), torch.full((2, 4), IGNORED))
    loss.mean().backward()
    assert loss.mean() == 0 and not cases.any() and not hidden.grad.any()
    assert label_loss(torch.randn(2, 3), torch.full((2, 3), math.nan)).mean() == 0
    assert label_loss(torch.randn(2, 0), torch.empty(2, 0)).mean() == 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equation_5(alpha: float) -> None:
    total = joint_loss(alpha, torch.tensor(0.7), torch.tensor(2.0))
    assert total.item() == pytest.approx(alpha * 0.7 + (1 - alpha) * 2.0)


def test_logits_in_parts_give_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = torch.randn(50, 8, generator=generator)
    wanted = torch.randint(0, 50, (11,), generator=generator)
    found, sizes = [], []
    whole = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda s, *a, **o: sizes.append(len(s)) or whole(s, *a, **o))
    for largest in (terms.LARGEST_LOGITS, 4 * 4 * 50):  # all at once, and four tokens
        monkeypatch.setattr(terms, "LARGEST_LOGITS", largest)
        states = torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        losses = terms.token_losses(states, vocabulary, wanted)
        (losses * torch.arange(11)).sum().backward()
        found.append((losses.detach(), states.grad))
    assert sizes[0] == 11 and max(sizes[1:]) == 4
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="added by a later PyTorch")
def test_token_losses_are_those_of_pytorch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = torch.randn(50, 8, generator=generator).to(dtype)
    states = torch.randn(11, 8, generator=generator).to(dtype).requires_grad_()
    wanted = torch.randint(0, 50, (11,), generator=generator)
    ours = terms.token_losses(states, vocabulary, wanted)
    theirs = F.linear_cross_entropy(states, vocabulary, wanted, reduction="none").float()
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(losses.sum(), states)[0] for losses in (ours, theirs)]
    assert torch.equal(*gradients)
