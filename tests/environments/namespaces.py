"""Environments that Linux makes for one process tree: another user, a read-only root, small shared memory."""

import shlex
import shutil
import subprocess
import sys

import pytest

USER_ID = 54321
# Without a name: as `docker run --user 54321` and OpenShift start a container.
NAMELESS_USER = ("unshare", "--user", f"--map-user={USER_ID}", f"--map-group={USER_ID}", "--")
READ_ONLY_ROOT = (
    "mount --make-rprivate /",
    "mount -o bind,remount,ro /",
    "mount -t tmpfs -o size=2g,mode=1777 tmpfs /mnt",
    "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm",  # Docker's default
)


def in_mounts(mounts: tuple[str, ...]) -> tuple[str, ...]:
    """A prefix that runs a command with these mounts, which only its processes see."""
    script = " && ".join([*mounts, 'exec "$@"'])
    return ("unshare", "--mount", "--map-root-user", "--", "bash", "-c", script, "bash")


def require(*prefix: str) -> None:
    """Skip the test, with the reason, where this machine does not allow such namespaces."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("no unshare: the environments of containers cannot be made here")
    trial = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        pytest.skip(f"{shlex.join(prefix)} is not allowed here: {trial.stderr.strip()}")
