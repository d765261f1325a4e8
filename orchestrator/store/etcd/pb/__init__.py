"""Generated from protos/orchestrator/store/etcd/pb by ``make protos``; never edited by hand."""
