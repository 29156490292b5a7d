"""Attacks that look for a way to another machine, or to a service of this one."""

import os
import socket
import threading
import uuid

import pytest


@pytest.fixture
def listener():
    """A service of the host on its loopback; yields its port and the list of connections that reached it."""
    server, reached = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            try:
                reached.append(server.accept())
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], reached
    server.close()


def test_a_connection_to_the_internet_fails(attempt):
    attempt("""
        for family, address in ((socket.AF_INET, "1.1.1.1"), (socket.AF_INET6, "2606:4700:4700::1111")):
            connection = socket.socket(family); connection.settimeout(2)
            must_fail(address, connection.connect, (address, 443))
    """)


def test_names_cannot_be_looked_up(attempt):
    attempt("""
        must_fail("getaddrinfo", socket.getaddrinfo, "example.com", 80)
        must_fail("datagram", socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, b"x", ("8.8.8.8", 53))
    """)


def test_raw_and_packet_sockets_are_refused(attempt):
    attempt("""
        must_fail("icmp", socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        must_fail("tcp", socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        must_fail("packet", socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3)
        must_fail("packet", socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, 3)
    """)


def test_rarely_tested_socket_families_are_refused(attempt):
    attempt("""
        for family in (9, 15, 21, 26, 29, 30, 31, 38, 40, 41, 43, 44, 45):
            for kind in (1, 2, 3, 5):
                must_fail(f"family {family}", socket.socket, family, kind)
    """)


def test_the_hosts_loopback_is_another(attempt, listener):
    port, reached = listener
    attempt(f"""
        for address in ("127.0.0.1", "localhost", "0.0.0.0"):
            must_fail(address, socket.create_connection, (address, {port}), 2)
    """)
    assert reached == []


def test_abstract_sockets_of_the_host_are_out_of_reach(attempt):
    name = f"baleen-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        attempt(f"must_fail('abstract', socket.socket(socket.AF_UNIX).connect, chr(0) + {name!r})")


def test_named_sockets_of_the_host_are_out_of_reach(attempt):
    path = f"/tmp/baleen-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        os.chmod(path, 0o777)
        server.listen()
        try:
            attempt(f"""
                for path in ({path!r}, "/run/dbus/system_bus_socket", "/var/run/docker.sock", "/run/systemd/private",
                             "/run/podman/podman.sock", "/run/containerd/containerd.sock", "/tmp/.X11-unix/X0"):
                    must_fail(path, socket.socket(socket.AF_UNIX).connect, path)
            """)
        finally:
            os.unlink(path)


def test_there_is_no_message_bus(attempt, monkeypatch):
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=/tmp/dbus-x")
    attempt("""
        if [name for name in os.environ if "DBUS" in name or "XDG" in name]: breach("environment")
        if os.path.exists("/run") and os.listdir("/run"): breach("run")
    """)


def test_interfaces_cannot_be_configured(attempt):
    attempt("""
        import fcntl, struct
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        address = struct.pack("16sH2s4s8s", b"lo", socket.AF_INET, b"", socket.inet_aton("10.0.0.1"), b"")
        for request in (0x8914, 0x8916, 0x8922, 0x8924, 0x89A0):
            must_fail(hex(request), fcntl.ioctl, probe, request, address)
        must_fail("bind to device", probe.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, 1)
        if [name for _, name in socket.if_nameindex()] != ["lo"]: breach(socket.if_nameindex())
    """)


def test_loopback_inside_works(attempt):
    result = attempt("""
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname(), 2)
        connection, _ = server.accept()
        connection.sendall(b"hello"); print(client.recv(5).decode())
    """)
    assert result.stdout.startswith("hello\n")
