"""How a comparison is shown: words, terminal tables, figures, the HTML page, and Weights & Biases."""
