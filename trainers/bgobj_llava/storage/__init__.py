"""Weights in and out: the base LLaVA, stored adapters, whole models put together again, exports."""
