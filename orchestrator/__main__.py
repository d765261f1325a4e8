"""`python -m orchestrator`: the orchestrator alone, configured by the environment only."""

from __future__ import annotations

import os
import sys

from orchestrator.app import main

sys.exit(main({}, os.environ))
