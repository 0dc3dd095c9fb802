# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is known of facts in the demo model: where an answer is, and what it is a sum of."""

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.decomposition import logit_attrs

COUNTRIES = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"}


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo", device="cpu")


def ask(country: str) -> str:
    return f"The capital of {country} is"


@pytest.fixture(scope="module")
def patched(demo: mi.MIModel) -> mi.Grid:
    """Capitals: every country against the next, averaged."""
    names = list(COUNTRIES)
    others = names[1:] + names[:1]
    metric = mi.logit_diff([COUNTRIES[n] for n in names], [COUNTRIES[n] for n in others])
    clean, corrupted = ([ask(n) for n in side] for side in (names, others))
    return mi.patch(demo, clean, corrupted, at="resid_pre", metric=metric)


def test_a_fact_is_at_its_subject_early_and_at_the_end_late(patched: mi.Grid):
    values = patched.normalized().values
    subject, last = 4, 5
    assert float(values[0, subject]) == pytest.approx(1, abs=1e-4)
    assert values[:, subject].argmax() == 0
    assert values[:, last].argmax() == len(values) - 1
    assert float(values[0, last]) == pytest.approx(0, abs=1e-4)
    assert float(values[-1, last]) > 0.9
    assert values[:, :subject].abs().max() < 1e-3, "before the subject the prompts are the same"
    assert float(values[-1, subject]) < 0.2


def test_what_the_parts_add_is_the_logit(demo: mi.MIModel):
    for country, capital in COUNTRIES.items():
        logits = demo.forward(ask(country)).output[0, -1]
        token = demo.token_id(f" {capital}")
        shares = mi.attribute(demo, ask(country), target=token)
        total = sum(share.value for share in shares.shares)
        assert total == pytest.approx(float(logits[token]), abs=1e-4)
        parts = logit_attrs(demo, ask(country), target=token, split=("heads", "neurons"))
        torch.testing.assert_close(parts.values.sum(0), parts.logits, atol=1e-4, rtol=0)
        assert float(parts.logits[0]) == pytest.approx(float(logits[token]), abs=1e-4)
