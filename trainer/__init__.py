"""Train, merge, export and evaluate embedding models on a mix."""
