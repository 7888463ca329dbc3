"""The parameters of a model: its head, its batch norms, its embeddings, and which of them are trained."""
