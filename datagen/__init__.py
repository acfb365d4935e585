"""Build training mixes for text-embedding models. Importing this package loads no torch and no vLLM."""

__version__ = "0.1.0"
