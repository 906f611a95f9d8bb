"""`safelight serve` with `fake_driver.py` in place of Ray, and shorter pauses.

python -m tests.service.supervision.fake_command MODE FOLDER PORT
"""

import sys
from pathlib import Path

from safelight.service.cli import main
from safelight.service.supervision import supervisor, watch

if __name__ == "__main__":
    mode, folder, port = sys.argv[1:]
    supervisor.DRIVER = (sys.executable, str(Path(__file__).with_name("fake_driver.py")), mode, folder)
    supervisor.STOP_SECONDS, supervisor.PROBE_SECONDS, watch.SCAN_SECONDS = 0.5, 0.2, 0.2
    sys.exit(main(["serve", "--model", "tiny", "--port", port]))
