"""What needs a GPU to be known: run by `make gpu-check` on a machine that has one, never by the test suite."""
