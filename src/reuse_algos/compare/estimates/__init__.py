"""How a comparison is computed: the t interval, curves within runs and over budgets, and what a place costs."""
