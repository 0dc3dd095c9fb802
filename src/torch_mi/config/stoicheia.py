# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a relu network that reads numbers one by one is, as data."""

from dataclasses import dataclass

from torch_mi.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReluRnnConfig:
    """Neurons, inputs and outputs; there are no biases."""

    hidden_size: int
    seq_len: int
    output_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name} = {value} is not positive")
