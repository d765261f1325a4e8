"""Whether a site takes work just now, by its connection and by what its operators want.

Decides the reason that people are told. Must not know jobs, nor what the site has.
"""

from __future__ import annotations

from atoll.model.placement import Reason
from atoll.model.site import SiteAdmin, SiteConnection
from orchestrator.core.state import Site


def closed_reason(site: Site) -> Reason | None:
    """Why nothing may be bound at the site; None: it takes work."""
    if site.connection is not SiteConnection.CONNECTED or not site.reported:
        return Reason.NOT_CONNECTED
    match site.record.admin:
        case SiteAdmin.OPEN:
            return None
        case SiteAdmin.DRAINING | SiteAdmin.DRAINED:
            return Reason.DRAINING
        case SiteAdmin.CORDONED | SiteAdmin.REMOVED:
            return Reason.CORDONED
