"""One program's pipes, as the server inside holds them: nothing that a program does there has no bound."""

import os
import select
import socket

from baleen.agent.sandbox.guest.frames import length_at, length_bytes
from baleen.agent.sandbox.guest.jobs import Channel, Job, Pipes


def turn(channel):
    """One turn of the server's loop; whether there was anything to do."""
    poll, handlers = select.poll(), {}
    for descriptor, events, handler in channel.interests():
        poll.register(descriptor, events)
        handlers[descriptor] = handler
    ready = poll.poll(0)
    for descriptor, _ in ready:
        handlers[descriptor]()
    return bool(ready)


def channel_and_program():
    """A channel whose host hears messages into a list, and the program's end of it."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    heard = []
    return Channel(ours.detach(), heard.append), theirs, heard


def test_output_that_never_ends_is_drained_to_a_bound():
    pipes = Pipes(joined=False, with_input=False, channel=None)
    endless = [os.open("/dev/zero", os.O_RDONLY) for _ in pipes.streams]
    pipes.close()
    pipes.streams = endless
    job = Job(1, 0, pipes, 1.0, 100)
    job.drain()
    job.close()
    assert sum(map(len, job.texts)) == 100
    assert job.truncated


def test_pipes_of_a_program_that_never_began_are_closed():
    before = sorted(os.listdir("/proc/self/fd"))
    Pipes(joined=False, with_input=True, channel=lambda _: None).close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_answers_that_a_program_does_not_read_do_not_pile_up():
    channel, program, heard = channel_and_program()
    with program:
        program.send((length_bytes(b"hi") + b"hi") * 2000)
        answered = 0
        for _ in range(50):
            turn(channel)
            if len(heard) > answered:
                answered += 1
                channel.answer(bytes(100_000))
        assert answered < 20
        assert len(channel._outbox.pending) <= 100_004
        program.setblocking(True)
        program.settimeout(5)
        received = b""
        while len(received) < 100_004 * 100:  # one who reads gets every answer
            while turn(channel) or len(heard) > answered:
                if len(heard) > answered:
                    answered += 1
                    channel.answer(bytes(100_000))
            received += program.recv(1 << 20)
        assert length_at(received) == length_at(received, 100_004) == 100_000
    channel.close()


def test_a_message_that_is_too_long_ends_the_channel_even_when_nobody_reads():
    channel, program, heard = channel_and_program()
    with program:
        program.send((length_bytes(b"hi") + b"hi") + (2 << 20).to_bytes(4, "big") * 500)
        turn(channel)
        assert heard == [b"hi"]
        channel.answer(bytes(10 << 20))
        assert channel._outbox.pending
        received = 0
        while True:
            turn(channel)
            piece = program.recv(1 << 20)
            if not piece:
                break
            received += len(piece)
        assert received == 4 + (10 << 20) + 4 + len(b'{"error": "a message to a tool is at most a mebibyte long"}')
    channel.close()
