"""Trained models in the formats of other tools: GGUF, and Hugging Face's BitNet folders."""
