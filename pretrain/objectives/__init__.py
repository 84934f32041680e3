"""The mathematics of the methods, one file a family: pure functions of embeddings."""
