# SPDX-License-Identifier: MIT OR Apache-2.0
"""Principal components against numpy and their definition; activations with padding."""

from pathlib import Path

import numpy as np
import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.geometry import Pca, activations, pca, pca_activations
from torch_mi.testing import tiny

P = mi.HookPoint


def test_five_points_on_a_line() -> None:
    points = torch.tensor([[1, 0], [2, 0.1], [3, -0.1], [4, 0.05], [5, -0.05]])
    found = pca(points, 2)
    assert found.ratios[0] > 0.99
    assert found.components[0, 0] > 0.99
    assert float(found.ratios.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("rows", "width"), [(40, 12), (8, 30)])
def test_components_are_numpys(rows: int, width: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    found = pca(x, 5)
    centred = (x - x.mean(0)).double().numpy()
    values, vectors = np.linalg.eigh(centred.T @ centred)
    assert np.allclose(found.eigenvalues.numpy(), values[::-1][:5], rtol=1e-5)
    alike = np.abs((vectors[:, ::-1][:, :5] * found.components.numpy().T).sum(0))
    assert np.allclose(alike, 1, atol=1e-5)
    assert float(found.eigenvalues.sum() / found.ratios.sum()) == pytest.approx(
        float(values.sum()), rel=1e-5
    )
    assert bool((found.components.gather(1, found.components.abs().argmax(1)[:, None]) > 0).all())


def test_components_are_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is absent")
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(1))
    found, theirs = pca(x, 4), decomposition.PCA(4).fit(x.numpy())
    alike = (torch.tensor(theirs.components_) * found.components).sum(1).abs()
    assert torch.allclose(alike, torch.ones(4), atol=1e-5)
    assert torch.allclose(found.ratios, torch.tensor(theirs.explained_variance_ratio_), atol=1e-6)
    assert torch.allclose(
        found.project(x).abs(), torch.tensor(theirs.transform(x.numpy())).abs(), atol=1e-5
    )


def test_projecting_back_is_exact_within_the_span_and_beyond_the_rank_is_nothing() -> None:
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    found = pca(x, 9)
    assert found.eigenvalues[3:].abs().max() == 0
    assert found.components[3:].abs().max() == 0
    assert torch.allclose(found.reconstruct(found.project(x)), x, atol=1e-5)
    still = pca(torch.ones(5, 3), 2)
    assert still.ratios.tolist() == [0, 0]


def test_omitted_rows_are_not_fitted() -> None:
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(3))
    x[:2] += 100
    found, plain = pca(x, 2, n_omit=2), pca(x[2:], 2)
    assert torch.equal(found.components, plain.components)
    assert found.fitted == 18


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "falcon"])
def test_activations_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny(family)
    prompts = ["abc", "the quick fox", "z", "hello"]
    hooks = [P.ResidPost(1), P.AttnZ(2)]
    for position in (-1, "all"):
        found = activations(model, prompts, at=hooks, position=position)
        for hook in hooks:
            alone = [
                model.forward(p, mi.HookSpec().capture(hook))[hook][0].detach() for p in prompts
            ]
            rows = [x.flatten(1) if position == "all" else x[-1:].flatten(1) for x in alone]
            assert torch.allclose(found.rows[hook], torch.cat(rows), atol=1e-5)
        assert len(found.samples) == len(found.rows[hooks[0]])
    assert [s.token for s in found.samples[:4]] == ["<s>", "a", "b", "c"]


def test_countries_lie_apart(tmp_path: Path) -> None:
    """In the demo model, kinds of word are what words differ in most."""
    model = mi.MIModel.from_pretrained("demo")
    places = [" Paris", " Rome", " Warsaw", " Madrid", " France", " Italy", " Poland", " Spain"]
    numbers = [" 1", " 2", " 3", " 4"]
    found = pca_activations(model, [*places, *numbers], at=P.ResidPost(2), k=2, n_omit=0)
    assert found.projections is not None
    along = found.projections[:, 0]
    countries, others = along[4:8], torch.cat([along[:4], along[8:]])
    assert countries.max() < others.min() or countries.min() > others.max()
    loaded = Pca.load(found.save(tmp_path / "p.json"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.project(torch.ones(128)), found.project(torch.ones(128)))
    assert "·France" in repr(found)
    assert len(found.plot().to_dict()["data"][0]["x"]) == 12
    assert len(found.to_pandas()) == 12
    assert pca(torch.randn(5, 3)).plot().data


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.ModelError, match=r"k=9 is out of range: 1 … 3"):
        pca(torch.randn(5, 3), 9)
    with pytest.raises(mi.ModelError, match="n_omit=5"):
        pca(torch.randn(5, 3), n_omit=5)
    with pytest.raises(mi.ModelError, match="not finite"):
        pca(torch.tensor([[1.0, torch.nan], [0, 1]]), 1)
    with pytest.raises(mi.HookError, match="not one vector for each token"):
        pca_activations(model, ["ab", "cd"], at=P.AttnPattern(0))
    with pytest.raises(mi.ModelError, match=r"rows of 3 numbers are needed, got \[2\]"):
        pca(torch.randn(5, 3)).project(torch.ones(2))
