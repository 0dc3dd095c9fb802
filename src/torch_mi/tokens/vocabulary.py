# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every kind of tokenizer can do, and `MITokenizer` builds on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from torch_mi.tokens.positions import EncodingWithOffsets


class Vocabulary(ABC):
    """Tokens, and how a text is cut into them; texts and ids come checked."""

    size: int
    """How many tokens there are."""
    special: AbstractSet[int]
    """The ids that stand for structure, not for text."""

    @abstractmethod
    def ids(self, text: str, *, special: bool) -> list[int]:
        """The ids of a text; with `special`, also what the model expects around it."""

    @abstractmethod
    def encoding(self, text: str, *, special: bool) -> EncodingWithOffsets:
        """`ids`, and where each token lies in the text; what is added around it lies at (0, 0)."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    @abstractmethod
    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token lies in `text(ids)`; tokens that share a character share its place."""

    @abstractmethod
    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it, or None if no token has this id."""

    def has(self, token_id: int) -> bool:
        """Whether a token has this id."""
        return self.token(token_id) is not None

    @abstractmethod
    def find(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""

    @abstractmethod
    def piece(self, token_id: int) -> str | None:
        """A token as it reads in the middle of a text, or None if no token has this id."""

    @abstractmethod
    def is_unknown(self, token_id: int, word: str) -> bool:
        """Whether this token stands for `word` only because the vocabulary lacks it."""

    @abstractmethod
    def prepend(self, token_id: int) -> None:
        """Put one token before every text, after what is put there already."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, object]:
        """Write the vocabulary; what `tokenizer_config.json` has to say of it besides."""
