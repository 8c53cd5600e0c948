"""Why a coordinator cannot be reached, told in words."""

import socket
import threading

import pytest

from ticketlab.errors import TicketlabError
from ticketlab.federate.address import check_name, is_everywhere, is_loopback, read_address
from ticketlab.federate.keys import make_authority
from ticketlab.federate.probe import clock_problem, look
from ticketlab.federate.processes import free_port

AUTHORITY = make_authority().certificate.decode()


def test_nobody_listens_and_names_that_do_not_resolve():
    assert "nobody listens" in look(read_address(f"127.0.0.1:{free_port()}"), AUTHORITY, 5).problem
    assert "does not resolve" in look(read_address("no-such-host.invalid:8443"), AUTHORITY, 5).problem


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_something_else_that_listens(answer):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def serve():
            door, _ = other.accept()
            with door:
                if answer is not None:
                    door.recv(100)
                    door.sendall(answer)
                else:
                    threading.Event().wait(2)

        thread = threading.Thread(target=serve)
        thread.start()
        problem = look(read_address(f"127.0.0.1:{other.getsockname()[1]}"), AUTHORITY, 1).problem
        thread.join()
    assert ("no ticketlab coordinator" if answer else "no answer within 1 s") in problem


def test_clocks_may_differ_as_far_as_flower_lets_them():
    assert [clock_problem(ahead) is None for ahead in (0, 4, 6, -250, -400)] == [True, True, False, True, False]
    assert "400 s behind" in clock_problem(-400.0) and "6 s ahead" in clock_problem(6.0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("lab.local:8443", "lab.local", 8443), ("10.0.0.5:1", "10.0.0.5", 1), ("[fd00::5]:8443", "fd00::5", 8443)],
)
def test_addresses(text, host, port):
    address = read_address(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize(
    "text",
    ["", "lab.local", "lab.local:", ":8443", "lab.local:0", "lab.local:70000", "a b:1", "https://lab:1", "::1:5"],
)
def test_what_is_no_address(text):
    with pytest.raises(TicketlabError, match="is no server address; write HOST:PORT"):
        read_address(text)


def test_names_of_clients():
    for name in ("pi1", "Pi_2", "a-b", "7"):
        check_name(name)
    for name in ("", "-pi", "pi/1", "../x", "pi 1", "pi.1", "é", "x" * 64):
        with pytest.raises(TicketlabError, match="is no name of a client"):
            check_name(name)


def test_which_hosts_are_this_machine():
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "lab.local", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert is_everywhere("0.0.0.0") and is_everywhere("::") and not is_everywhere("127.0.0.1")
