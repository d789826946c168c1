"""Hosts on one machine: network namespaces, each with a line to a switch. Needs root, and Linux's `ip`.

A namespace has no name: it lives as long as a process that waits for the end of its input. So nothing is left behind,
however the test ends. A line is a pair of virtual ends, or, where it is slow or loses packets, what `line.py` carries.
(`tc netem` would do that, too, where the kernel has it; this is the same everywhere, and loses the same each time.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

LINE = Path(__file__).with_name("line.py")


def missing() -> str | None:
    """What this machine lacks for it."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if absent := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"there is no {absent[0]} here"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun here"
    try:
        with closing(Network()) as network:
            network.host("a")
            network.host("b", round_trip=0.001)
    except (OSError, RuntimeError) as error:
        return f"this machine has no network namespaces for us: {error}"
    return None


class Namespace:
    """One network namespace. Its processes end with it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._started: list[subprocess.Popen[Any]] = []
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            self.close()
            raise RuntimeError("unshare --net is refused")
        self.ip("link set lo up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *words: str) -> list[str]:
        """What runs `words` in this namespace."""
        return ["nsenter", "--target", str(self.pid), "--net", *words]

    def ip(self, *lines: str) -> None:
        """Run some commands of `ip`."""
        text = "\n".join(lines)
        done = subprocess.run(self.command("ip", "-batch", "-"), input=text, capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise RuntimeError(f"ip: {done.stderr.strip()} ({text})")

    def start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process here. It is killed when the namespace ends, if it still runs."""
        process = subprocess.Popen(self.command(*words), **options)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in (*self._started, self._holder):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


class Host(Namespace):
    """A namespace with an address."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self.name = name
        self.number = number
        self.address = f"10.77.0.{number}"


class Network:
    """A switch, and the hosts on it. A second switch makes a second way between those that have a line to it."""

    def __init__(self) -> None:
        self._switch = Namespace()
        self._hosts: list[Host] = []
        self._ways = 0
        try:
            self._add_way()
        except BaseException:
            self._switch.close()
            raise

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        self._switch.close()

    def host(self, name: str, round_trip: float = 0.0, loss: float = 0.0) -> Host:
        """A new host. Each packet over its line takes half of `round_trip` (seconds), or is lost (0 to 1)."""
        host = Host(name, len(self._hosts) + 1)
        self._hosts.append(host)
        if round_trip or loss:
            self._lay_line(host, round_trip, loss)
        else:
            self._lay_cable(host, 0)
        return host

    def second_way(self, *hosts: Host) -> None:
        """Lay each of these a second cable, to a second switch, where it is 10.77.1.n; and give it an address that is
        at neither, 10.78.0.n, which the others reach over the first."""
        self._add_way()
        for host in hosts:
            self._lay_cable(host, 1)
            host.ip(f"addr add 10.78.0.{host.number}/32 dev lo")
            host.address = f"10.78.0.{host.number}"
        self.route(0, *hosts)

    def route(self, way: int, *hosts: Host) -> None:
        """Let these reach each other over that switch."""
        for host in hosts:
            host.ip(
                *(
                    f"route replace {other.address} via 10.77.{way}.{other.number} src {host.address}"
                    for other in hosts
                    if other is not host
                )
            )

    def cut(self, host: Host, way: int = 0) -> None:
        """Have nothing reach the host any more, and nothing leave it: no one is told."""
        self._switch.ip(f"link set {host.name}{way} nomaster")

    def heal(self, host: Host, way: int = 0) -> None:
        self._switch.ip(f"link set {host.name}{way} master way{way}")

    def _add_way(self) -> None:
        self._switch.ip(f"link add way{self._ways} type bridge forward_delay 0", f"link set way{self._ways} up")
        self._ways += 1

    def _lay_cable(self, host: Host, way: int) -> None:
        end = f"{host.name}{way}"
        self._switch.ip(f"link add {end} type veth peer name eth{way} netns {host.pid}")
        self._connect(host, way)

    def _lay_line(self, host: Host, round_trip: float, loss: float) -> None:
        words = sys.executable, str(LINE), f"{host.name}0", f"{host.name}x", str(round_trip / 2), str(loss)
        line = self._switch.start(*words, stdout=subprocess.PIPE)
        if not line.stdout or not line.stdout.readline():
            raise RuntimeError("there is no line")
        self._switch.ip(f"link set {host.name}x netns {host.pid} name eth0")
        self._connect(host, 0)

    def _connect(self, host: Host, way: int) -> None:
        self._switch.ip(f"link set {host.name}{way} master way{way} up")
        host.ip(f"addr add 10.77.{way}.{host.number}/24 dev eth{way}", f"link set eth{way} up")
