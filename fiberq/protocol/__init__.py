"""The delivery protocol, without I/O: pure state machines that take events and give frames.

Nothing below this package opens a socket, starts a thread or reads a clock; time comes in as an argument (`now`, in
seconds of a monotonic clock). That is what lets tests drive it through millions of interleavings.

- `frames`   how a frame looks on the wire
- `session`  frames arrive once and in order, although connections break
- `batch`    how items are kept, split and joined without touching them one by one
- `device`   what sits between writers and readers, and who owns which item until when; `pull` and `push` deal
- `broker`   the node: its clients' sessions, and which frame goes to which device
- `members`, `strangers`   who is connected, and what the node says to them; who has yet to say hello, or was refused
- `channels`   who holds which queue or pipe, handles in flight, and who must wait because the memory is full
- `requests`, `surveys`   what the node answers, and to whom; what it has to ask others for first
- `writer`, `reader`, `client`   the same in a user's process
"""
