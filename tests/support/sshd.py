"""An ssh server for tests: on the loopback interface, with temporary keys, stopped after the tests."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")
START_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server; `bin` holds an ssh that knows it, to be put first on the PATH."""

    address: str
    port: int
    bin: Path
    home: Path


def can_serve() -> bool:
    """Return whether OpenSSH's server and client are installed."""
    return SSHD.exists() and shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Yield a server that lets this user in by a key made in `folder`, where its sessions' temporary files lie too."""
    for name in ("host", "user"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(line, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    home = folder / "device"
    home.mkdir()
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPubkeyAuthentication yes\nUsePAM no\n"
        f"StrictModes no\nPidFile none\nSetEnv TMPDIR={home}\n"
    )
    public = (folder / "host.pub").read_text().strip()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}\n")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder / 'known'}\nGlobalKnownHostsFile none\nIdentityFile {folder / 'user'}\n"
        "IdentitiesOnly yes\nIdentityAgent none\n"
    )
    programs = folder / "bin"
    programs.mkdir()
    # The user's own configuration cannot be put elsewhere by the environment.
    wrapper = programs / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
    wrapper.chmod(0o755)
    # As root it insists on a folder that the system's own start makes.
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        try:
            _wait_for(port)
            yield Server(address=f"{getpass.getuser()}@127.0.0.1:{port}", port=port, bin=programs, home=home)
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def _wait_for(port: int) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return
