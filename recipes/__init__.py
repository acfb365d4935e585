"""Recipes: what is in a mix and how a model is trained on it, every decision in the open."""
