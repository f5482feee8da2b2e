"""KL estimates: values and gradients by exact sums over a vocabulary of five."""

import pytest
import torch

from zolab.rl import KLS

P = torch.tensor([1.0, 0.2, -1.0, 0.5, -2.0], dtype=torch.float64)
Q = torch.tensor([0.1, 0.9, -0.3, -0.5, 0.4], dtype=torch.float64)


def setting():
    theta = P.clone().requires_grad_()
    return theta, theta.log_softmax(0), Q.log_softmax(0)


def reverse(logp, ref):
    return (logp.exp() * (logp - ref)).sum()


@pytest.mark.parametrize("name", ["k1", "k3", "k3+"])
def test_its_value_is_unbiased(name):
    _, logp, ref = setting()
    mean = (logp.exp() * KLS[name](logp, ref)).sum()
    assert mean.item() == pytest.approx(reverse(logp, ref).item(), rel=1e-12)


def test_k2_is_biased_and_second_order_right():
    _, logp, ref = setting()
    mean = (logp.exp() * KLS["k2"](logp, ref)).sum()
    assert abs(mean / reverse(logp, ref) - 1) > 0.02
    near = (P + 0.01 * Q).log_softmax(0)
    mean = (logp.exp() * KLS["k2"](logp, near)).sum()
    assert mean.item() == pytest.approx(reverse(logp, near).item(), rel=0.01)


def test_only_k1_is_negative_and_k3_varies_least():
    logp, ref = P.log_softmax(0), (P + 0.1 * Q).log_softmax(0)
    p = logp.exp()
    values = {name: k(logp, ref).detach() for name, k in KLS.items()}
    assert [n for n, v in values.items() if v.min() < 0] == ["k1"]
    spread = {n: (p * (v - (p * v).sum()) ** 2).sum() for n, v in values.items()}
    assert spread["k3"] < 0.1 * spread["k1"]


def in_the_loss(name):
    """E over tokens of the gradient of the estimate: the sampling has none."""
    theta, logp, ref = setting()
    mean = (logp.exp().detach() * KLS[name](logp, ref)).sum()
    return torch.autograd.grad(mean, theta)[0]


def test_in_the_loss_k1_is_no_pull_at_all():
    assert in_the_loss("k1").abs().max() < 1e-15


@pytest.mark.parametrize("name", ["k2", "k3+"])
def test_in_the_loss_k2_has_the_reverse_kls_gradient(name):
    theta, logp, ref = setting()
    wanted = torch.autograd.grad(reverse(logp, ref), theta)[0]
    assert torch.allclose(in_the_loss(name), wanted, atol=1e-14)


def test_in_the_loss_k3_has_the_forward_kls_gradient():
    """The trap: k3's value is right and its gradient is another divergence's."""
    theta, logp, ref = setting()
    forward = (ref.exp() * (ref - logp)).sum()
    wanted = torch.autograd.grad(forward, theta)[0]
    assert torch.allclose(in_the_loss("k3"), wanted, atol=1e-14)
    other = torch.autograd.grad(reverse(*setting()[1:]), theta, allow_unused=True)[0]
    assert other is None or not torch.allclose(wanted, other, atol=0.01)


def test_in_the_reward_k1_has_the_reverse_kls_gradient():
    theta, logp, ref = setting()
    surrogate = (logp.exp().detach() * KLS["k1"](logp, ref).detach() * logp).sum()
    wanted = torch.autograd.grad(reverse(logp, ref), theta, retain_graph=True)[0]
    found = torch.autograd.grad(surrogate, theta)[0]
    assert torch.allclose(found, wanted, atol=1e-14)


def test_a_monte_carlo_mean_agrees():
    _, logp, ref = setting()
    g = torch.Generator().manual_seed(0)
    y = torch.multinomial(logp.exp().detach(), 200_000, True, generator=g)
    k3 = KLS["k3"](logp.detach()[y], ref[y])
    error = k3.std() / len(y) ** 0.5
    assert abs(k3.mean() - reverse(logp, ref).item()) < 4 * error < 0.02
