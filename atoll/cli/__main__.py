"""`python -m atoll.cli`: the command, for processes that start it with their own interpreter."""

from __future__ import annotations

import sys

from atoll.cli.app import main
from atoll.cli.children import end_with_parent

end_with_parent()
sys.exit(main())
