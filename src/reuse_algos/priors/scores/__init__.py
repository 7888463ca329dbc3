"""How hard, uncertain or informative examples are: formulas, and scores read from prior runs."""
