#!/usr/bin/env python3
"""Holds a running server against docs/openapi.json with schemathesis.

`cargo lab test` runs it with the VMM's API on a host without KVM, the example
api_without_kvm; it takes any program that knows --api-socket, the VMM too.
Further arguments are for schemathesis. The socket is reached through a TCP port
of this program, and a server that ends is started again, so that vmm.shutdown
is among what is tried.
"""

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# A wrong state is an error 500, as in Cloud Hypervisor; and a configuration of
# the right form may still make no sense (400), which the schema cannot say.
CHECKS = ",".join(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "missing_required_header",
    ]
)


class Vmm:
    """The program under test, started again whenever it has ended."""

    def __init__(self, program, folder):
        self.program = program
        self.path = os.path.join(folder, "api.sock")
        self.log = open(os.path.join(folder, "stderr.log"), "ab")
        self.child = None
        self.lock = threading.Lock()
        self.crashes = []

    def connect(self):
        deadline = time.monotonic() + 20
        while True:
            with self.lock:
                if self.child is None or self.child.poll() is not None:
                    if self.child is not None and self.child.returncode != 0:
                        self.crashes.append(self.child.returncode)
                    self.child = subprocess.Popen(
                        [self.program, "--api-socket", self.path],
                        stdin=subprocess.DEVNULL,
                        # Where files go whose names it is made to use.
                        cwd=os.path.dirname(self.path),
                        stderr=self.log,
                    )
            client = socket.socket(socket.AF_UNIX)
            try:
                client.connect(self.path)
                return client
            except OSError:
                client.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def end(self):
        if self.child is not None:
            self.child.terminate()
            self.child.wait()
            if self.child.returncode != 0:
                self.crashes.append(self.child.returncode)


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = tempfile.mkdtemp(prefix="api-check-")
    vmm = Vmm(sys.argv[1], folder)

    class Bridge(socketserver.BaseRequestHandler):
        def handle(self):
            with vmm.connect() as server:
                back = threading.Thread(target=pump, args=(server, self.request))
                back.start()
                pump(self.request, server)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Bridge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
        status = subprocess.run(
            [
                program,
                "run",
                os.path.join(ROOT, "docs/openapi.json"),
                "--url",
                f"http://127.0.0.1:{port}",
                "--checks",
                CHECKS,
                "--phases",
                "examples,coverage,fuzzing",
                "--seed",
                "1",
                *sys.argv[2:],
            ],
            check=False,
        ).returncode
        vmm.end()
        server.shutdown()
    with open(os.path.join(folder, "stderr.log"), encoding="utf-8", errors="replace") as log:
        text = log.read()
    shutil.rmtree(folder)
    if vmm.crashes or "panicked" in text:
        print(text[-4000:])
        print(f"The VMM ended with {vmm.crashes}")
        status = status or 1
    sys.exit(status)


if __name__ == "__main__":
    main()
