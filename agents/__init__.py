"""The site's side of Atoll: one agent per site, its core, its runtimes, its engine.

Importing this package must stay cheap: torch, diffusers and Ray are loaded by the parts that use them, when they do.
"""
