"""Every port on which the processes of a service listen: only this machine reaches it, or it refuses."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import httpx2
import psutil
import pytest

from tests.live import LiveService

# Methods of Ray's servers that answer anyone who has the token: one for each kind of process.
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RuntimeEnvService/GetRuntimeEnvsInfo",
    "/ray.rpc.LogService/ListLogs",
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.serve.RayServeAPIService/Healthz",
)
SECONDS = 10.0


@dataclass(frozen=True)
class Port:
    """A TCP port on which a process listens."""

    process: str
    address: str
    number: int

    @property
    def target(self) -> str:
        """Where this machine reaches it."""
        ip = ipaddress.ip_address(self.address)
        host = "127.0.0.1" if ip.is_unspecified else f"[{ip}]" if ip.version == 6 else str(ip)
        return f"{host}:{self.number}"

    @property
    def is_loopback(self) -> bool:
        ip = ipaddress.ip_address(self.address)
        return bool((getattr(ip, "ipv4_mapped", None) or ip).is_loopback)

    def __str__(self) -> str:
        return f"{self.process} on {self.address}:{self.number}"


def processes(service: LiveService) -> Iterator[psutil.Process]:
    """The processes of the service, also those that were adopted by another: they share its token."""
    supervisor = psutil.Process(service.process.pid)
    children = supervisor.children(recursive=True)
    tokens = {token_of(child) for child in children} - {None}
    others = [process for process in psutil.process_iter() if token_of(process) in tokens]
    yield from {process.pid: process for process in (supervisor, *children, *others)}.values()


def token_of(process: psutil.Process) -> str | None:
    """Where the process finds the token of its Ray."""
    try:
        environ: dict[str, str] = process.environ()
    except psutil.Error:
        return None
    return environ.get("RAY_AUTH_TOKEN_PATH")


def listening(service: LiveService) -> list[Port]:
    ports = {
        Port(re.sub(r"\d+", "", " ".join(process.cmdline())[:60]), entry.laddr.ip, entry.laddr.port)
        for process in processes(service)
        for entry in process.net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN
    }
    return sorted(ports, key=str)


def grpc_answers(port: Port) -> dict[str, str]:
    """What each of `METHODS` is answered without the token."""
    answers = {}
    with grpc.insecure_channel(port.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=SECONDS)
                answers[method] = "OK"
            except grpc.RpcError as error:
                answers[method] = error.code().name
                if error.code() is grpc.StatusCode.UNAVAILABLE:  # it speaks no gRPC
                    break
    return answers


def http_statuses(port: Port) -> set[int]:
    """The statuses of answers to plain requests; empty if the port speaks no HTTP."""
    try:
        with httpx2.Client(base_url=f"http://{port.target}", timeout=SECONDS) as client:
            return {client.get(path).status_code for path in ("/", "/metrics", "/api/version")}
    except httpx2.HTTPError:
        return set()


def problem_of(port: Port) -> str | None:
    """What is wrong with a port that other machines may reach; None if it refuses them."""
    answers = grpc_answers(port)
    if "OK" in answers.values():
        return f"{port} answers without a token: {answers}"
    if "UNAUTHENTICATED" in answers.values():
        return None
    statuses = http_statuses(port)
    if statuses and statuses.isdisjoint(range(200, 400)):
        return None
    return f"{port} neither asks for a token nor refuses: gRPC {answers}, HTTP {statuses}"


def test_no_port_of_a_service_answers_other_machines(live_service: LiveService) -> None:
    ports = listening(live_service)
    assert any(port.number == live_service.port and port.is_loopback for port in ports)
    open_ports = [port for port in ports if not port.is_loopback]
    # Ray's own servers are on the loopback; those by which Serve's replicas call each other cannot be
    assert {port.process.split(":")[2] for port in open_ports} == {"ServeReplica"}, open_ports
    assert [problem for port in open_ports if (problem := problem_of(port)) is not None] == []
    assert open_ports, (
        "Ray listens on all interfaces; if it does not any more, docs/security.md is to be changed"
    )


@pytest.mark.parametrize("is_grpc", [True, False])
def test_a_port_that_answers_is_noticed(is_grpc: bool) -> None:
    """The test of the test: a server of gRPC without a token, and one of HTTP."""
    if is_grpc:
        from concurrent.futures import ThreadPoolExecutor

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
                return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

        server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
        number = server.add_insecure_port("127.0.0.1:0")
        server.start()
        assert "answers without a token" in str(problem_of(Port("test", "0.0.0.0", number)))
        server.stop(None).wait()
        return
    import http.server
    import threading

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        problem = problem_of(Port("test", "0.0.0.0", pages.server_address[1]))
        pages.shutdown()
    assert "neither asks for a token nor refuses" in str(problem)
