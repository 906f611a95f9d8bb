"""`python -m service.cli`, where the console script is not installed."""

import sys

from service.cli import main

sys.exit(main())
