"""Build training mixes for text-embedding models. Importing this loads no torch and no vLLM."""

__version__ = "0.1.0"
