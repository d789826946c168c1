"""Which peer a message is from, and which one it goes to."""

from __future__ import annotations

from .lab import Lab, plain
from .rules import rule


@rule("ROUTE-1")
def test_a_reply_reaches_only_its_peer(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(5)]
    for which, link in enumerate(links):
        link.client.send([b"request", b"%d" % which])
    for _ in links:
        message = hub.take()
        hub.socket.send(message.peer, [b"reply", plain(message.parts)[1]])
    for which, link in enumerate(links):
        assert hub.hear(link.client) == [b"reply", b"%d" % which]
    # What is still leaving for one peer does not get to another.
    for size in (10, 100_000, 4_000_000):
        for which, link in enumerate(links):
            hub.socket.send(link.peer, [b"%d" % which, bytes(size)])
        for which, link in enumerate(links):
            number, content = hub.hear(link.client)
            assert [int(number), len(content)] == [which, size]
    hub.drive(0.05)
    assert all(link.client.recv(0) is None for link in links)


@rule("ROUTE-2")
def test_one_request_gets_many_replies(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(2)]
    links[0].client.send([b"request"])
    peer = hub.take().peer
    for first in range(0, 600, 30):
        for number in range(first, first + 30):
            hub.socket.send(peer, [b"%d" % number])
        for number in range(first, first + 30):
            assert hub.hear(links[0].client) == [b"%d" % number]
    assert links[1].client.recv(0) is None


@rule("ROUTE-2")
def test_messages_reach_peers_that_did_not_ask(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(3)]
    for number in range(5):
        for link in reversed(links):
            hub.socket.send(link.peer, [b"news", b"%d" % number])
    for link in links:
        for number in range(5):
            assert hub.hear(link.client) == [b"news", b"%d" % number]


@rule("ROUTE-3")
def test_a_client_that_connects_again_is_a_new_peer(lab: Lab) -> None:
    hub = lab.hub()
    seen = set()
    for _ in range(300):
        link = lab.join(hub)
        assert link.peer not in seen
        seen.add(link.peer)
        link.client.close()
        hub.until_lost(link.peer)


@rule("ROUTE-4")
def test_a_message_to_a_lost_peer_raises_nothing(lab: Lab) -> None:
    hub = lab.hub()
    gone, stays = lab.join(hub), lab.join(hub)
    gone.client.close()
    for _ in range(10):
        hub.socket.send(gone.peer, [b"not known yet"])
    hub.until_lost(gone.peer)
    newcomer = lab.join(hub)
    for _ in range(10):
        hub.socket.send(gone.peer, [b"known"])
    for link in (stays, newcomer):
        hub.socket.send(link.peer, [b"mine"])
        assert hub.hear(link.client) == [b"mine"]
        hub.drive(0.02)
        assert link.client.recv(0) is None, "a message for a lost peer reached another"
    assert hub.lost == [gone.peer]


@rule("ROUTE-5")
def test_a_peer_keeps_its_name(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(3)]
    peers = [link.peer for link in links]
    assert len({*peers}) == 3
    for _ in range(20):
        for link in links:
            link.client.send([b"again"])
            message = hub.take()
            assert message.peer == link.peer
            assert hash(message.peer) == hash(link.peer)
    for _ in range(1100):
        links[0].client.send([b"and again"])
        assert hub.take().peer == links[0].peer
