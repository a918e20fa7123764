"""A Ray cluster of several nodes on this machine, each of its own `ray start`, with a token that all must know."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).parent / "ray")
SMALL_STORE = "--object-store-memory=100000000"
START_S = 120
"""What a node gets for its start; one whose head has ended would wait forever."""
TOKEN = "RAY_AUTH_TOKEN_PATH"
SETTLE_S = 2
"""`ray start` looks every second whether a part of a node that has just started has ended, and ends the node then."""


# Ray Train starts the coordinator once per cluster, for all jobs, and keeps it. The cleaner of a killed driver ends
# when the State API has answered, which takes minutes on a busy machine. Neither holds resources.
LEFT_BEHIND = """
import ray, time
ray.init(logging_level="ERROR", log_to_driver=False)
from ray.util.state import list_actors, list_placement_groups
for attempt in range(60):
    groups = [group.name for group in list_placement_groups() if group.state != "REMOVED"]
    actors = [actor.class_name for actor in list_actors() if actor.state != "DEAD"]
    actors = [name for name in actors if name not in ("_AutoscalingCoordinatorActor", "PlacementGroupCleaner")]
    used = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    if not groups and not actors and not used:
        break
    time.sleep(1)
print("left:", groups, actors, used)
"""


@dataclass
class Node:
    """A node's `ray start`, which stays in the foreground, leads its session and ends when a process of it does."""

    process: subprocess.Popen
    log: Path

    def pids(self, title: str = "") -> list[int]:
        """Living processes of this node whose command contains `title`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = os.getsid(int(folder.name)) == self.process.pid
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if ours and command and title in command:
                found.append(int(folder.name))
        return found

    @property
    def joined(self) -> bool:
        """`ray start` says so."""
        return "Ray runtime started" in self.log.read_text()

    @property
    def raylet(self) -> int:
        """The one process of a node that is its own C++ program and no part of another's command."""
        return next(pid for pid in self.pids() if Path(f"/proc/{pid}/exe").resolve().name == "raylet")

    def end(self) -> None:
        """SIGKILL whatever is left of this node."""
        while left := self.pids():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()


@dataclass
class Cluster:
    """Nodes with so many CPUs each, the first one the head. Use as a context; ends exactly what it started."""

    cpus: tuple[int, ...]
    options: tuple[str, ...] = ()
    """More of `ray start`'s options, for all nodes."""
    settings: dict[str, str] = field(default_factory=dict)
    """More of the environment of all nodes."""
    directory: Path | None = None
    """Where `ray start` is called."""
    private: Path | None = None
    """A folder of which each node has one of its own, in memory; needs root."""
    nodes: list[Node] = field(default_factory=list, init=False)
    _started: list[Node] = field(default_factory=list, init=False)

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # not pytest's: Ray's sockets need a short path
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.env = {} if TOKEN in os.environ else new_token(self.folder)
        """What a program's environment needs besides this process's to be let in."""
        try:
            for cpus in self.cpus:  # one after another: nodes that start at once on one machine get in each other's way
                self.add_node(cpus)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for node in reversed(self._started):
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self, cpus: int, *options: str) -> Node:
        """One more node, with more of `ray start`'s options."""
        head = not self.nodes
        place = ["--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={_free_port()}"]
        place = [*place, f"--temp-dir={self.folder}"] if head else [f"--address={self.address}"]
        # All nodes share this machine's ports: the system chooses them.
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={_free_port()}"]
        command = [RAY, "start", "--block", "--disable-usage-stats", SMALL_STORE, *place]
        command += [*ports, f"--num-cpus={cpus}", *self.options, *options]
        if self.private is not None:
            mount = f"mount -t tmpfs none {shlex.quote(str(self.private))} && exec "
            command = ["unshare", "--mount", "sh", "-c", mount + shlex.join(command)]
        for attempt in range(3):  # Ray gives a starting node 30 s, which a busy machine may exceed
            node = self._start(command, self.folder / f"node-{len(self.nodes)}-{attempt}.log")
            deadline = time.monotonic() + START_S
            while not node.joined and node.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(SETTLE_S)
            if node.joined and node.process.poll() is None:
                self.nodes.append(node)
                return node
            node.end()
        raise AssertionError(f"the node did not start: {node.log.read_text()[-2000:]}")

    def remove_node(self, node: Node) -> None:
        """End a node, and wait until the cluster no longer counts its resources."""
        node.end()
        self.nodes.remove(node)
        count = "sum(node['Alive'] for node in ray.nodes())"
        deadline = time.monotonic() + 60
        while int(self.ask(count)) > len(self.nodes):
            assert time.monotonic() < deadline, "the node is still counted"

    def _start(self, command: list[str], log: Path) -> Node:
        with open(log, "w") as out:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=os.environ | self.env | self.settings,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(process, log)
        self._started.append(node)
        return node

    def kill_raylet(self, index: int) -> None:
        """SIGKILL a node's raylet: Ray's other processes of that node end by themselves."""
        os.kill(self.nodes[index].raylet, signal.SIGKILL)

    def kill(
        self,
        title: str,
        choose: Callable[[list[tuple[int, int]]], tuple[int, int]] = min,
        how: signal.Signals = signal.SIGKILL,
    ) -> int:
        """Signal a process whose command contains `title`, the one that `choose` takes of several; return its id."""
        deadline = time.monotonic() + 60
        while not (found := self.processes(title)):  # a title cannot be read while Ray is changing it
            assert time.monotonic() < deadline, f"no {title}"
            time.sleep(0.05)
        pid = choose(found)[1]
        os.kill(pid, how)
        return pid

    def alive(self) -> list[Node]:
        """Nodes whose raylet lives."""
        return [node for node in self.nodes if node.process.poll() is None]

    def processes(self, title: str) -> list[tuple[int, int]]:
        """Node's index and process id of the living processes whose command contains `title`."""
        return [(index, pid) for index, node in enumerate(self.nodes) for pid in node.pids(title)]

    def ask(self, expression: str, timeout_s: float = 60) -> str:
        """Evaluate a Python expression in a process connected to this cluster; its value as text."""
        script = f"import ray\nray.init({self.address!r}, logging_level='ERROR', log_to_driver=False)\n"
        command = [sys.executable, "-c", f"{script}print('value:', {expression})"]
        environment = os.environ | self.env
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
        assert asked.returncode == 0, asked.stderr
        # Ray writes messages of its own to the same stream.
        return next(line for line in asked.stdout.splitlines() if line.startswith("value: ")).removeprefix("value: ")

    def assert_nothing_left(self) -> None:
        """Check that the programs that used the cluster give back all that they held, also one that was killed."""
        # Another process asks, so that this one stays free of Ray.
        environment = os.environ | self.env | {"RAY_ADDRESS": self.address}
        command = [sys.executable, "-c", LEFT_BEHIND]
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert "left: [] [] 0.0" in asked.stdout.splitlines(), asked.stdout + asked.stderr


def new_token(folder: Path) -> dict[str, str]:
    """Environment of a cluster with a new token, and of the programs that it lets in."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    return {"RAY_AUTH_MODE": "token", TOKEN: str(token)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
