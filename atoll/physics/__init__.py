"""FLOPs, bytes and times of a generation on a GPU, from the catalogue's figures.

Decides the prior of every estimate. Pure: whole numbers in and out, durations in microseconds; no clock, file or chance.
`hidden` is apart from the rest: the truth of twins and of simulated worlds, which no orchestrator may import.
"""
