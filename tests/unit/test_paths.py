# SPDX-License-Identifier: MIT OR Apache-2.0
"""Path patching against its definition: everything between sender and receiver held as it was."""

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.paths import LOGITS, Receiver, path_patch
from torch_mi.testing import tiny

CLEAN, CORRUPTED = "abcdefg", "abXdefg"
P = mi.HookPoint


def put(hook: mi.Hook, value: torch.Tensor, at: mi.At | None = None) -> mi.HookSpec:
    return mi.HookSpec().intervene(hook, mi.Replace(value, at=at))


def by_hand(
    model: mi.MIModel, layer: int, head: int | None, receivers: list[Receiver], word: str
) -> float:
    """Two whole runs: one with all outputs but the sender's held; one with the inputs from it."""
    ends = {"q": P.AttnQIn, "k": P.AttnKIn, "v": P.AttnVIn, "mlp": P.MlpIn}
    kept = mi.HookSpec().capture(P.AttnOut, P.MlpOut, P.AttnZ)
    source, edited = (model.forward(text, kept.copy()) for text in (CLEAN, CORRUPTED))
    held = mi.HookSpec()
    for i in range(model.num_layers):
        for point in (P.AttnOut, P.MlpOut):
            sender = i == layer and point is (P.MlpOut if head is None else P.AttnOut)
            if sender and head is None:
                held.intervene(point(i), mi.Replace(source[point(i)]))
            elif not sender:
                held.intervene(point(i), mi.Replace(edited[point(i)]))
    if head is not None:
        held |= put(P.AttnZ(layer), source[P.AttnZ(layer)][:, :, head], mi.At(head=head))
        others = [h for h in range(model.num_heads) if h != head]
        held |= put(P.AttnZ(layer), edited[P.AttnZ(layer)][:, :, others], mi.At(head=others))
    run = model.forward(CORRUPTED, held.capture(*ends.values(), P.FinalNorm))
    told = mi.HookSpec()
    for r in receivers:
        if r.layer is None:
            told.intervene(P.FinalNorm, mi.Replace(run[P.FinalNorm]))
        else:
            read = run[ends[r.kind](r.layer)]
            at = None if r.head is None else mi.At(head=r.head)
            read = read if r.head is None else read[:, :, r.head]
            told.intervene(ends[r.kind](r.layer), mi.Replace(read, at=at))
    return float(model.forward(CORRUPTED, told).output[0, -1, model.token_id(word)])


RECEIVERS = {
    "logits": [LOGITS],
    "queries": [Receiver("q", 2, 3), Receiver("q", 1, 0)],
    "keys and values": [Receiver("k", 2, 1), Receiver("v", 1, 0), Receiver("v", 2, 1)],
    "mlp": [Receiver("mlp", 1)],
    "mixed": [Receiver("mlp", 2), Receiver("k", 1, 0), Receiver("q", 2, 5)],
}


@pytest.mark.parametrize(
    ("family", "who"),
    [("llama", who) for who in RECEIVERS]
    + [(family, "mixed") for family in ("gemma2", "phi3", "falcon", "cohere", "olmo2")]
    + [(family, "logits") for family in ("gemma2", "falcon", "olmo2", "gpt2")],
)
def test_paths_equal_two_whole_runs(family: str, who: str):
    model = tiny(family)
    receivers = [
        Receiver(r.kind, r.layer, r.head)
        if r.head is None or r.kind == "q" or r.head < model.num_kv_heads
        else Receiver(r.kind, r.layer, 0)
        for r in RECEIVERS[who]
    ]
    metric = mi.logit("q")
    heads = path_patch(model, CLEAN, CORRUPTED, metric=metric, receivers=receivers)
    mlps = path_patch(model, CLEAN, CORRUPTED, metric=metric, receivers=receivers, senders="mlps")
    assert heads.values.shape == (model.num_layers, model.num_heads)
    for layer in range(model.num_layers):
        assert float(mlps.values[layer]) == pytest.approx(
            by_hand(model, layer, None, receivers, "q"), abs=2e-5
        )
        for head in (0, 3):
            assert float(heads.values[layer, head]) == pytest.approx(
                by_hand(model, layer, head, receivers, "q"), abs=2e-5
            )


def test_senders_after_the_receiver_tell_it_nothing():
    model = tiny("llama")
    grid = path_patch(
        model, CLEAN, CORRUPTED, metric=mi.logit("q"), receivers=[Receiver("q", 1, 2)]
    )
    assert (grid.values[1:] - grid.baseline).abs().max() == 0
    assert (grid.values[0] - grid.baseline).abs().max() > 1e-5
    noising = path_patch(model, CLEAN, CORRUPTED, metric=mi.logit("q"), direction="noising")
    assert noising.reference == pytest.approx(grid.baseline, abs=1e-5)
    assert noising.options["receivers"] == ["logits"]


def test_wrong_requests_say_what_is_right():
    model, metric = tiny("llama"), mi.logit("q")
    for receiver, said in (
        (Receiver("q", 1), "an MLP has a layer, a head a layer and a number"),
        (Receiver("k", 1, 4), "k1.4: head 4 is out of range: there are 3 for k"),
        (Receiver("mlp", 7), "mlp7: this model has no"),
    ):
        with pytest.raises(mi.InterventionError, match=said):
            path_patch(model, CLEAN, CORRUPTED, metric=metric, receivers=[receiver])


def test_in_the_demo_model_induction_heads_say_the_copied_word():
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    clean, corrupted = (f" cat seven paper {word} hat cat seven paper" for word in ("Rome", "moon"))
    metric = mi.logit_diff(" Rome", " moon")
    grid = path_patch(model, clean, corrupted, metric=metric).normalized()
    induction = {(layer, head) for layer, head, _ in mi.find_heads(model).best(9)}
    best = [(place["layer"], place["head"]) for place, _ in grid.best(4)]
    assert set(best) <= induction
    assert grid.best(1)[0][1] > 0.03
