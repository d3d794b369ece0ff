"""The server as a process, for tests that ask it over a connection."""

import http.client
import json
import re
import signal
import subprocess
import sys

SERVE = [sys.executable, "-m", "symboliclight.commands.cli", "serve"]


class Server:
    def __init__(self, *options):
        self.process = subprocess.Popen([*SERVE, "--port", "0", *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        if self.line:
            self.port = int(re.search(r":(\d+)/", self.line)[1])

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path, body=None, raw=None, **headers):
        """(status, JSON)"""
        answer = self.open(path, body, raw, **headers)
        return answer.status, json.loads(answer.read())

    def open(self, path, body=None, raw=None, method=None, **headers):
        link = self.connect()
        data = raw if raw is not None else None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        link.request(method or ("GET" if data is None else "POST"), path, data, headers)
        return link.getresponse()

    def stream(self, path, body):
        link = self.connect()
        link.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        lines = [x.removeprefix("data: ") for x in link.getresponse().read().decode().split("\n\n") if x]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def running(self):
        return self.ask("/health")[1]["running"]

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err
