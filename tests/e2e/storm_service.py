"""The node of a storm, kept running as an operator's service manager would, and the hand that kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from helpers import free_ports
from storm_agents import WITNESS

import mesh
from mesh.launch import data_hash, runtime_dir

#: A service manager's pause before it starts a service again.
RESTART_S = 0.1
#: After the supervisor's death everything below it is gone within this time, on a busy machine too.
GONE_S = 15.0
STOP_S = 30.0
#: Mean time between two strikes at one process of the node; another one every few seconds.
PACES_S = (0.02, 0.1, 0.4, 1.2, 3.0)
PHASE_S = (1.5, 6.0)
#: Mean time between two strikes at the supervisor.
SUPERVISOR_S = 5.0

#: name -> whether it is declared idempotent
AGENTS = {"counter": False, "sleeper": False, "streamer": False, "plain": False, "safe": True}
SETTINGS = """
[node]
name = "storm"
port = {port}
data_dir = "{data_dir}"
partitions = 2
runners = {runners}
[supervision]
hang_timeout_s = 2.0
heartbeat_s = 0.2
intensity = 1000
"""


class Service:
    """``mesh up``, started again whenever it ends, on the same folder and the same port."""

    def __init__(self, folder: Path, seed: str) -> None:
        chance = random.Random(f"{seed} service")
        self.data_dir = folder / "data"
        self.log = folder / "mesh-up.log"
        self.witness = folder / "witness.txt"
        self.witness.touch()
        self.config = folder / "mesh.toml"
        self.port = free_ports()
        self.config.write_text(settings(self.data_dir, self.port, chance.choice((1, 2, 2))))
        self.problems: list[str] = []
        self.lives = 0
        self._chance = chance
        self._mark = f"MESH_MARK={data_hash(self.data_dir)}:".encode()
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._struck: dict[int, set[int]] = {}  #: pid -> what was to end it
        self._keeper = threading.Thread(target=self._keep, name="service")

    @property
    def ipc(self) -> str:
        """Where clients of this machine connect, through all its lives."""
        return f"ipc://{runtime_dir(self.data_dir)}/front"

    @property
    def tcp(self) -> str:
        """The same over the network."""
        return f"tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Service:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the node in order; it leaves with status 0 and no process behind."""
        self._over.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                status = process.wait(STOP_S)
                if status != 0:
                    self.problems.append(f"mesh up, when it was stopped, ended with status {status}")
            except subprocess.TimeoutExpired:
                self.problems.append(f"mesh up did not stop within {STOP_S:g} s")
                process.kill()
        self._keeper.join(STOP_S)
        self.await_gone("the end")

    def signal(self, number: int) -> bool:
        """Signal the supervisor; False when there is none now."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._struck.setdefault(process.pid, set()).add(number)
        process.send_signal(number)
        return True

    @property
    def pid(self) -> int | None:
        """The supervisor's process."""
        return None if self._process is None else self._process.pid

    def send(self, pid: int, number: int) -> bool:
        """Signal a process of this node; a pid that is used again belongs to somebody else."""
        if pid == self.pid:  # it may have no mark yet
            return self.signal(number)
        try:
            if self._mark not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            os.kill(pid, number)
        except OSError:
            return False
        return True

    def children(self) -> list[tuple[str, int]]:
        """Names and pids of the node's processes, also of those that are still starting."""
        try:
            noted = json.loads((self.data_dir / "processes.json").read_text())["processes"]
        except (OSError, ValueError):
            return []
        return [(name, pid) for name, pid, _ in noted]

    def processes(self) -> dict[int, str]:
        """Every living process that a life of this node started, by its environment mark."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (entry / "environ").read_bytes():
                    stat = (entry / "stat").read_text()
                    if stat.rpartition(")")[2].split()[0] not in "ZX":
                        found[int(entry.name)] = stat
            except OSError:
                continue
        return found

    def _keep(self) -> None:
        while not self._over.is_set():
            self._start()
            assert self._process is not None
            status = self._process.wait()
            struck = self._struck.get(self._process.pid, set())
            fine = signal.SIGKILL in struck or (status in (0, -signal.SIGTERM) and signal.SIGTERM in struck)
            if not fine and not self._over.is_set():
                told = [signal.Signals(number).name for number in struck]
                self.problems.append(f"mesh up ended with status {status} after {told}: see {self.log}")
            if self._chance.random() < 0.5:
                self.await_gone(f"life {self.lives} of the supervisor")
            self._over.wait(RESTART_S)

    def _start(self) -> None:
        self.lives += 1
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MESH_") or k == "MESH_RUNTIME_DIR"}
        root = str(Path(mesh.__file__).resolve().parents[1])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mesh", "up", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**clean, "PYTHONPATH": root, WITNESS: str(self.witness)},
            )

    def await_gone(self, what: str, patience_s: float = GONE_S) -> None:
        """The node's death is the death of everything below it."""
        until_s = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < until_s:
            for pid in left:  # one that the storm froze in its last moment
                self.send(pid, signal.SIGCONT)
            time.sleep(0.02)
        self.problems += [f"process {pid} outlived {what}: {stat}" for pid, stat in left.items()]


class Killer:
    """Kills and freezes processes of a node at random moments."""

    def __init__(self, service: Service, seed: str) -> None:
        self.service = service
        self.random = random.Random(f"{seed} kill")
        self.strikes: list[str] = []
        self.frozen: dict[int, float] = {}
        self._pace_s = PACES_S[-1]
        self._phase_s = self._supervisor_s = 0.0  #: when the next one begins

    def run(self, until_s: float) -> None:
        """Storm until that time; afterwards nobody is frozen by us. Each storm kills the supervisor."""
        begin_s = time.monotonic()
        self._supervisor_s = begin_s + self.random.uniform(0.1, 0.6) * (until_s - begin_s)
        self._supervisor_s = min(self._supervisor_s, begin_s + 2 * SUPERVISOR_S)
        while (now_s := time.monotonic()) < until_s:
            for pid in [pid for pid, at in self.frozen.items() if at <= now_s]:
                self.service.send(pid, signal.SIGCONT)
                del self.frozen[pid]
            if now_s >= self._phase_s:
                self._pace_s = self.random.choice(PACES_S)
                self._phase_s = now_s + self.random.uniform(*PHASE_S)
            if now_s >= self._supervisor_s:
                self._strike_supervisor(now_s)
                self._supervisor_s = now_s + self.random.expovariate(1 / SUPERVISOR_S)
            for _ in range(self.random.choice((1, 1, 1, 2, 5))):
                self._strike(now_s)
            pause_s = self.random.expovariate(1 / self._pace_s)
            time.sleep(max(0.0, min(pause_s, self._phase_s - now_s, until_s - now_s)))
        for pid in self.frozen:
            self.service.send(pid, signal.SIGCONT)

    def _strike_supervisor(self, now_s: float) -> None:
        chance = self.random.random() if "supervisor killed" in self.strikes else 0.5
        if chance < 0.15:
            for _, pid in self.service.children():
                self.service.send(pid, signal.SIGKILL)
            if self.service.signal(signal.SIGKILL):
                self.strikes.append("everything killed")
        elif chance < 0.75:
            number, what = (signal.SIGKILL, "killed") if chance < 0.6 else (signal.SIGTERM, "stopped")
            if self.service.signal(number):
                self.strikes.append(f"supervisor {what}")
        elif (pid := self.service.pid) is not None and self.service.signal(signal.SIGSTOP):
            self.strikes.append("supervisor frozen")
            self.frozen[pid] = now_s + self.random.uniform(0.05, 3.0)

    def _strike(self, now_s: float) -> None:
        children = self.service.children()
        if not children:
            return
        name, pid = self.random.choice(children)
        if self.random.random() < 0.75:
            if self.service.send(pid, signal.SIGKILL):
                self.strikes.append(f"{name} killed")
        elif self.service.send(pid, signal.SIGSTOP):
            self.strikes.append(f"{name} frozen")
            if self.random.random() < 0.6:
                self.frozen[pid] = now_s + self.random.uniform(0.05, 3.0)


def settings(data_dir: Path, port: int, runners: int) -> str:
    """The node's configuration file."""
    text = SETTINGS.format(port=port, data_dir=data_dir, runners=runners)
    file = Path(__file__).with_name("storm_agents.py")
    for name, idempotent in AGENTS.items():
        text += f'[agents.{name}]\nprovider = "python"\ntarget = "{file}:{name}"\n'
        text += "idempotent = true\n" if idempotent else ""
    return text


__all__ = ["AGENTS", "Killer", "Service"]
