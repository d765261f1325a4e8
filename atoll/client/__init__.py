"""The Python SDK: `Client` and `AsyncClient`, what they take and answer, and what they raise.

    from atoll.client import Client

    with Client("127.0.0.1:7443") as client:
        job_id = client.submit("tiny-image", "a lighthouse", seed=7)
        client.result(job_id, timeout_s=60)
        client.download(job_id, "lighthouse.png")

Must not know servers, nor how things are shown.
"""

from __future__ import annotations

from atoll.client.again import DEAD, REPEATABLE, again
from atoll.client.aio import AsyncClient
from atoll.client.answers import (
    AdapterView,
    BackedUp,
    DrainStarted,
    JobChange,
    JobExplained,
    JobLogs,
    ModelView,
    PolicyInUse,
    Residuals,
    SiteAdded,
    SitesApplied,
    Submitted,
)
from atoll.client.errors import (
    AuthError,
    ClientError,
    ConflictError,
    CorruptError,
    DeadlineError,
    ForbiddenError,
    InputError,
    InternalError,
    JobEndedError,
    LimitError,
    NotFoundError,
    SettingsError,
    StateError,
    UnavailableError,
    UnsupportedError,
)
from atoll.client.requests import JobRequest
from atoll.client.settings import Settings
from atoll.client.sync import Client
from atoll.client.vain import NeverRunsWarning

__all__ = [
    "Client",
    "AsyncClient",
    "JobRequest",
    "Settings",
    "AdapterView",
    "BackedUp",
    "DrainStarted",
    "JobChange",
    "JobExplained",
    "JobLogs",
    "ModelView",
    "PolicyInUse",
    "Residuals",
    "SiteAdded",
    "SitesApplied",
    "Submitted",
    "DEAD",
    "REPEATABLE",
    "again",
    "ClientError",
    "AuthError",
    "ConflictError",
    "CorruptError",
    "DeadlineError",
    "ForbiddenError",
    "InputError",
    "InternalError",
    "JobEndedError",
    "LimitError",
    "NeverRunsWarning",
    "NotFoundError",
    "SettingsError",
    "StateError",
    "UnavailableError",
    "UnsupportedError",
]
