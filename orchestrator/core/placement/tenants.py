"""Rules of tenants: where the work of a tenant may run at all, whatever its jobs ask for.

Decides the form of a rule and its bounds. That a place keeps it is decided where all hard filters are (`filters`). Must not know the
fleet: a rule may name a site that is still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, SiteId, parse_name
from atoll.model.limits import CONSTRAINT_NAMES_MAX

# As of regions in a fleet's file: one line on a screen.
_LABEL_CHARS_MAX: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRules:
    """Where a tenant's jobs may run. Of what is empty, anywhere."""

    sites: tuple[SiteId, ...] = ()
    regions: tuple[str, ...] = ()
    gpu_types: tuple[GpuTypeId, ...] = ()

    def check(self, tenant: str) -> TenantRules:
        """Self if it keeps its bounds; else FieldError for the first that it does not."""
        for key, names in (("sites", self.sites), ("regions", self.regions), ("gpu_types", self.gpu_types)):
            field = f"tenants.{tenant}.{key}"
            if len(names) > CONSTRAINT_NAMES_MAX:
                raise FieldError(field, len(names), f"at most {CONSTRAINT_NAMES_MAX} names")
            for name in names:
                if key == "sites":
                    parse_name(field, name)
                elif not name or not name.isprintable() or len(name) > _LABEL_CHARS_MAX:
                    raise FieldError(field, name, f"1 to {_LABEL_CHARS_MAX} printable characters on one line")
        if not (self.sites or self.regions or self.gpu_types):
            raise FieldError(f"tenants.{tenant}", "nothing", "sites, regions or gpu_types: a tenant without rules is left out")
        return self
