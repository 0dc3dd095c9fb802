# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder or a Hub id to weights on disk, read lazily."""
