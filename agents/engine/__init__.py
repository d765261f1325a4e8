"""Diffusers pipelines from local folders: build tiny ones, check any, load, generate, encode.

Decides how a picture is made from a request. Must not know Ray, the network, or why the picture is wanted.
"""
