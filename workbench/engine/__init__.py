"""Decode engine: Llama-type models over the native kernels, other models through transformers."""
