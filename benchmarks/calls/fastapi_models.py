"""The order as pydantic models, as a FastAPI service declares it."""

from __future__ import annotations
