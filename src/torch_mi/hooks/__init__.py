# SPDX-License-Identifier: MIT OR Apache-2.0
"""Hook points, specs, interventions: how a forward pass is watched and changed."""
