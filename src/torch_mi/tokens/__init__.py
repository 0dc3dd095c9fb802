# SPDX-License-Identifier: MIT OR Apache-2.0
"""From text to token ids and back, and where each token lies in its text."""
