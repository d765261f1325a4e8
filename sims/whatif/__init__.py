"""What if: a live fleet and its recent arrivals, played as they are and with one change, seed by seed."""
