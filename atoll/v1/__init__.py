"""Generated from protos/atoll/v1 by ``make protos``; never edited by hand."""
