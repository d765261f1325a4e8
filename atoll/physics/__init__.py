"""FLOPs, bytes and times of a generation on a GPU, from the catalogue's figures. Pure."""
