"""A line between two virtual network cards that takes its time and loses packets. A program of its own.

`line.py CARD CARD SECONDS LOSS`: makes both cards, says so, and carries each packet to the other card, `SECONDS` later,
or, with the probability `LOSS`, not at all. That goes for IPv4 only: between distant hosts lies a router, and what an
Ethernet has beside it (who has which address) does not cross the line.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
from collections import deque
from time import monotonic

SET_INTERFACE = 0x400454CA
TAP, NO_HEADER = 0x0002, 0x1000
LARGEST = 65_536
IPV4 = b"\x08\x00"
AT_ONCE = 64
"""Packets that are taken from one card before the other has its turn."""


def card(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TAP | NO_HEADER))
    return fd


def carry(one: int, other: int, seconds: float, loss: float) -> None:
    chance = random.Random(1)
    under_way: deque[tuple[float, int, bytes]] = deque()
    poll = select.poll()
    for fd in (one, other):
        poll.register(fd, select.POLLIN)
    while True:
        wait = max(0.0, under_way[0][0] - monotonic()) * 1000 if under_way else None
        for fd, _ in poll.poll(wait):
            target = other if fd == one else one
            for _ in range(AT_ONCE):
                try:
                    packet = os.read(fd, LARGEST)
                except OSError:  # there is none, or the card is not up yet
                    break
                if packet[12:14] != IPV4 or chance.random() >= loss:
                    under_way.append((monotonic() + seconds, target, packet))
        while under_way and under_way[0][0] <= monotonic():
            _, target, packet = under_way.popleft()
            try:
                os.write(target, packet)
            except OSError:  # the card is not up
                pass


if __name__ == "__main__":
    os.setpriority(os.PRIO_PROCESS, 0, -15)  # A line does not get slower because a machine is busy.
    cards = card(sys.argv[1]), card(sys.argv[2])
    print("ready", flush=True)
    carry(*cards, float(sys.argv[3]), float(sys.argv[4]))
