"""Dynamic Prompt Learning (Wang et al. 2023): nouns whose embeddings are learned at every step of an inversion."""
