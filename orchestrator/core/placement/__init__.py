"""Where a job goes: filters reject with a reason, terms answer in seconds, the cheapest candidate or a deferral wins."""
