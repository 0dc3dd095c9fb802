# SPDX-License-Identifier: MIT OR Apache-2.0
"""Techniques: functions of a model, prompts and options that return typed results."""
