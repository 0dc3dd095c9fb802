# SPDX-License-Identifier: MIT OR Apache-2.0
"""A tour of a model: what it knows, where that shows, what carries it. All of it is measured."""

from collections.abc import Sequence

from torch_mi.analysis.tour_attention import AttentionTour, attention_tour
from torch_mi.analysis.tour_states import StateTour, state_tour
from torch_mi.analysis.tour_steps import PAIRS
from torch_mi.model import MIModel


def tour(model: MIModel, pairs: Sequence[tuple[str, str]] = PAIRS) -> AttentionTour | StateTour:
    """Look at what a model knows of these pairs of prompts, and take the clearest to pieces.

    In a recurrent model what is looked at and cut are states, in others it is attention.
    """
    return state_tour(model, pairs) if model.backend.recurrent else attention_tour(model, pairs)
