"""`python -m safelight.service.cli`, where the console script is not installed."""

import sys

from safelight.service.cli import main

sys.exit(main())
