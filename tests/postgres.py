"""A PostgreSQL server of a test's own, in a folder of its own; stopped and started as the test likes."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

PASSWORD = "secret/p@ss"
ACCOUNT = "lhp"


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs, None where there is none."""
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name.split(".")[0]))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


class Postgres:
    """A server that listens on this machine only."""

    def __init__(self) -> None:
        place = programs()
        if place is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        self._programs = place
        self.folder = Path(tempfile.mkdtemp(prefix="lhp-postgres-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
            shutil.chown(self.folder / "password", "postgres")
        self._run("initdb", "-D", str(self.data), "-U", ACCOUNT, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8",
                  "--pwfile", str(self.folder / "password"))  # fmt: skip
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", ACCOUNT, "studies", password=True)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}/studies"

    @property
    def url(self) -> str:
        """With the account, without the password."""
        return f"postgresql+psycopg://{ACCOUNT}@{self.address}"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As when the machine of the server fails: nothing is waited for."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str, password: bool = False) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        environment = {**os.environ, "LC_ALL": "C"} | ({"PGPASSWORD": PASSWORD} if password else {})
        subprocess.run(
            [*user, str(self._programs / program), *arguments],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, cwd=self.folder,
        )  # fmt: skip
