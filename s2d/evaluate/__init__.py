"""Measures models: avg@k and pass@k with confidence intervals, paired comparisons (gate C1), KL (gate C2)."""
