"""Options that name a store in etcd, shared by the verbs that open one.

Decides their texts. What they may hold, and what belongs together, is said by the server's own settings.
"""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="sqlite|URL", help="'sqlite', in the data folder (default), or etcd://HOST:PORT,HOST:PORT/PREFIX."),
]
StoreUserOption = Annotated[
    str | None, typer.Option("--store-user", metavar="NAME", help="etcd's user; ATOLL_ORCHESTRATOR_STORE_PASSWORD is its password.")
]
StoreCaOption = Annotated[
    str | None, typer.Option("--store-ca", metavar="FILE|system", help="Speak TLS to etcd; whose certificates are trusted, PEM.")
]
StoreCertOption = Annotated[str | None, typer.Option("--store-cert", metavar="FILE", help="Certificate shown to etcd, PEM.")]
StoreKeyOption = Annotated[str | None, typer.Option("--store-key", metavar="FILE", help="Its key, PEM.")]
StoreTlsNameOption = Annotated[
    str | None, typer.Option("--store-tls-name", metavar="NAME", help="What all members' certificates carry (default: the first host).")
]
StoreQuotaOption = Annotated[
    str | None, typer.Option("--store-quota-bytes", metavar="N", help="--quota-backend-bytes of an etcd before 3.6 (default: 2 GiB).")
]
