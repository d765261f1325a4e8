"""Studies: many runs side by side, what they say together, and what no run can exceed."""
