"""Where records live. `base` is the Protocol, `sqlite` the embedded default."""
