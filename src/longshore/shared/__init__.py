"""Shared primitives: one name, one object, in every handler, worker and process that is joined to the same place."""

from __future__ import annotations
