"""qrag-bench: how well and how fast evidence is found, side by side with what a user would pick instead."""

from __future__ import annotations
