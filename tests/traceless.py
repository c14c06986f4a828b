"""A process with an empty home and without a network: what it leaves there is found, and whom it calls is said."""

import os
import subprocess
import sys
from pathlib import Path

# where one of these is set, ONNX Runtime is silent by itself
CI_NAMES = (
    "CI", "APPVEYOR", "BUILDKITE", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL",
    "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
)  # fmt: skip
# refuses every socket but those of this machine's own kinds, and says which was wanted
NO_NETWORK = """
import socket
def refuse(self, address, *rest):
    raise AssertionError(f"a connection to {address} was opened")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


def run_traceless(home: Path, code: str, *words: str | Path, timeout_s: float = 600) -> None:
    """Run code whose `sys.argv` has these words; it must succeed, and call nobody. `home` is made."""
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("XDG_CACHE_HOME", *CI_NAMES):
        env.pop(name, None)
    command = [sys.executable, "-c", NO_NETWORK + code, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    assert "a connection to" not in done.stderr
