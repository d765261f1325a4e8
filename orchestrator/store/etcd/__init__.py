"""The store in etcd. `client` and `watch` speak to it, `store` keeps the contract of `orchestrator.store.base`."""
