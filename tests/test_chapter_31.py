"""Chapter 31: its claims' controls fail."""

from zolab.lab import claims


def test_one_sign_for_all_has_no_root():
    n, spread = 100, 1.0  # the same sign a hundred times: its mean is as wide as one
    assert claims.ledger()["31-first"].judge(spread * n**0.5) == claims.NOT_SEEN
