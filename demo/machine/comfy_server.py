"""Start a real ComfyUI server, run prompts on it, fetch what they made.

    with ComfyServer(environment.python, environment.host, base_directory(root)) as server:
        result = server.run(prompt, on_progress=print)
        images = [server.fetch(image) for image in result.images()]

`queue` and the history use plain HTTP; a websocket, opened before the prompt is queued, carries the progress
only, so a lost one costs the progress lines and never the result.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from machine.prompt_result import (
    ProgressHandler,
    ProgressWatcher,
    PromptError,
    PromptInterrupted,
    PromptResult,
    ServerError,
    refusal,
    result_of,
)

__all__ = ["ComfyServer", "PromptError", "PromptInterrupted", "PromptResult", "ServerError", "free_port"]

TAIL_LINES = 40


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_accelerator(python: Path) -> bool:
    """True when the torch of `python` can use CUDA (or ROCm) or MPS."""
    code = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "True"


NOTHING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
"""The smallest prompt."""


class ComfyServer:
    """A ComfyUI server in a process of its own; a context manager that stops it.

    `base` is a base directory (machine/base_directory.py). `cpu=None` takes the accelerator if there is one.
    The log goes to `log` (default: server.log in `base`).
    """

    def __init__(
        self,
        python: Path,
        host: Path,
        base: Path,
        *,
        cpu: bool | None = None,
        log: Path | None = None,
        extra_args: Sequence[str] = (),
        start_timeout: float = 300,
    ) -> None:
        self.base = base
        self.log = log or base / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._host = host
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        use_cpu = not has_accelerator(python) if cpu is None else cpu
        # The host keeps its database in its own folder unless told; the API nodes would ask the network.
        database = "sqlite:///" + (base / "user" / "comfyui.db").as_posix()
        self.command = [
            *(str(python), str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(base), "--database-url", database),
            *("--disable-auto-launch", "--disable-api-nodes", *(["--cpu"] if use_cpu else []), *extra_args),
        ]

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers; on failure it is stopped and its log's tail raised."""
        if self._process is not None:
            raise ServerError(f"The server at {self.url} is running already; stop() it first.")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self._host, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"ComfyUI ended with code {process.returncode}:\n{self.log_tail()}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {self._start_timeout:g} s:\n{self.log_tail()}")

    @property
    def alive(self) -> bool:
        """Whether its process runs, however long it takes to answer."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process: asked first, killed after ten seconds. Does nothing when it has ended."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_text(self) -> str:
        """Everything that the server has logged."""
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self) -> str:
        """The last lines of the log, for error texts."""
        return "\n".join(self.log_text().splitlines()[-TAIL_LINES:])

    def _request(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        headers = {"Content-Type": kind} if data is not None else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        # A proxy of the environment must not be asked for an address of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """GET a JSON answer."""
        return json.loads(self._request(path))

    def post(self, path: str, body: Any) -> Any:
        """POST JSON; the answer is JSON or, when it is empty, None."""
        answer = self._request(path, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def object_info(self) -> dict[str, Any]:
        """All node definitions of the server."""
        return self.get("/object_info")

    def queue(self, prompt: Mapping[str, Any], client_id: str = "", workflow: Any = None) -> str:
        """Queue an API prompt and return its id; a refused prompt (or output of it) is a PromptError."""
        body: dict[str, Any] = {"prompt": prompt, "client_id": client_id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            raise refusal(json.loads(error.read() or b"{}")) from error
        if answer.get("node_errors"):
            self.interrupt(answer["prompt_id"])
            raise refusal(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: Mapping[str, Any],
        *,
        on_progress: ProgressHandler | None = None,
        timeout: float = 1800,
        workflow: Any = None,
    ) -> PromptResult:
        """Run an API prompt to its end.

        `on_progress(node id, done, total)` is called from another thread. Raises PromptError,
        PromptInterrupted, or TimeoutError after `timeout` seconds; at that and at Ctrl-C it is interrupted.
        """
        client_id = uuid.uuid4().hex
        watcher = ProgressWatcher(self.url, client_id, on_progress) if on_progress else None
        prompt_id = ""
        try:
            prompt_id = self.queue(prompt, client_id, workflow)
            return self.wait(prompt_id, timeout)
        except (KeyboardInterrupt, TimeoutError):
            if prompt_id:
                self.interrupt(prompt_id)
            raise
        finally:
            if watcher:
                watcher.close()

    def wait(self, prompt_id: str, timeout: float = 1800) -> PromptResult:
        """Wait until a queued prompt is in the history."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise ServerError(f"ComfyUI ended with code {self._process.returncode}:\n{self.log_tail()}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return result_of(prompt_id, entry)
            time.sleep(0.1)
        raise TimeoutError(f"The prompt did not end within {timeout:g} s. The log ends:\n{self.log_tail()}")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running prompt and, when it is still waiting, take `prompt_id` out of the queue."""
        if prompt_id is not None:
            self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def forget(self) -> None:
        """Make the server drop all outputs and models that it keeps, before anything queued after this.

        The host looks at this wish between two prompts, and takes one that is queued at once before it: so the
        smallest prompt goes in between.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        self.run(NOTHING)

    def fetch(self, image: Mapping[str, str]) -> bytes:
        """The bytes of an image file as named in a node's output."""
        names = {key: image.get(key, "") for key in ("filename", "subfolder", "type")}
        return self._request("/view?" + urllib.parse.urlencode(names))

    def upload(self, path: Path, name: str | None = None) -> str:
        """Upload an input image, over one of the same name; returns the name for a Load Image node."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        head += f"--{boundary}\r\n"
        head += f'Content-Disposition: form-data; name="image"; filename="{name or path.name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(part for part in (answer["subfolder"], answer["name"]) if part)
