"""Small transformers from a configuration. Nothing is fetched from a hub."""

from __future__ import annotations

from reuse_algos.models.text.tiny import TEXT_MODELS, build_text_model, text_model_shape
from reuse_algos.models.text.tokens import TOKEN_KEYS, name_tokens

__all__ = ["TEXT_MODELS", "TOKEN_KEYS", "build_text_model", "name_tokens", "text_model_shape"]
