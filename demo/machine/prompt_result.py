"""What a prompt comes to: its result, its errors, and its progress while it runs."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ProgressHandler = Callable[[str, int, int], None]


class ServerError(RuntimeError):
    """The server did not start, ended, or answered with an error."""


class PromptError(ServerError):
    """A prompt was refused or a node failed; without a node id the prompt is refused as a whole."""

    def __init__(self, message: str, node_id: str | None = None, node_type: str | None = None) -> None:
        where = f"node {node_id} ({node_type}): " if node_id is not None else ""
        super().__init__(where + message)
        self.node_id = node_id
        self.node_type = node_type
        self.message = message


class PromptInterrupted(ServerError):  # noqa: N818 - as the host names it
    """The prompt was interrupted."""


@dataclass(frozen=True)
class PromptResult:
    """What a prompt left in the history: `outputs` maps a node's id to its `ui` dictionary."""

    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]]
    executed: tuple[str, ...]
    """Ids of the nodes that ran, without those taken from the cache."""

    def images(self, node_id: str | None = None) -> list[Mapping[str, str]]:
        """The image files of one node, or of all nodes in the order of their ids, as `fetch` takes them."""
        nodes = [node_id] if node_id is not None else list(self.outputs)
        return [image for node in nodes for image in self.outputs.get(node, {}).get("images", [])]


def refusal(answer: Mapping[str, Any]) -> PromptError:
    """The first node error of a refused prompt, with the number of the others."""
    nodes: Mapping[str, Any] = answer.get("node_errors") or {}
    for node_id, found in nodes.items():
        texts = [f"{error['message']} ({error['details']})" for error in found["errors"]]
        more = f" (and {len(nodes) - 1} more nodes)" if len(nodes) > 1 else ""
        return PromptError("; ".join(texts) + more, node_id, found["class_type"])
    error = answer.get("error") or answer
    if isinstance(error, Mapping) and "message" in error:
        extra = error.get("extra_info") or {}
        text = " ".join(str(part) for part in (error["message"], error.get("details")) if part)
        return PromptError(text, extra.get("node_id"), extra.get("class_type"))
    return PromptError(f"the server refused the prompt: {error}")


def result_of(prompt_id: str, entry: Mapping[str, Any]) -> PromptResult:
    """A history entry as a result, or as the error that it tells of."""
    messages = {kind: data for kind, data in entry["status"]["messages"]}
    if "execution_error" in messages:
        data = messages["execution_error"]
        text = f"{data['exception_type']}: {data['exception_message']}".strip()
        raise PromptError(text, data["node_id"], data["node_type"])
    if "execution_interrupted" in messages:
        data = messages["execution_interrupted"]
        raise PromptInterrupted(f"interrupted at node {data.get('node_id')} ({data.get('node_type')})")
    cached = set(messages.get("execution_cached", {}).get("nodes", []))
    prompt, outputs = entry["prompt"][2], entry["prompt"][4]
    ran = tuple(sorted(_ancestors(prompt, outputs) - cached, key=list(prompt).index))
    return PromptResult(prompt_id, entry["outputs"], ran)


def _ancestors(prompt: Mapping[str, Any], outputs: Sequence[str]) -> set[str]:
    """The nodes that the outputs need, themselves included."""
    found: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in found or node not in prompt:
            continue
        found.add(node)
        waiting += [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return found


ENDS = ("execution_success", "execution_error", "execution_interrupted")
"""The host's messages that come last of a prompt."""


class ProgressWatcher:
    """Listens to the websocket in a thread and hands on `progress_state` messages."""

    def __init__(self, url: str, client_id: str, handler: ProgressHandler) -> None:
        self._address = f"{url}/ws?clientId={client_id}"
        self._handler = handler
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def close(self) -> None:
        """Stop listening, but not before what the server sent up to the prompt's end has been read."""
        self._ended.wait(2)
        self._closed.set()
        self._thread.join(5)

    def _main(self) -> None:
        import asyncio

        try:
            asyncio.run(self._listen())
        except (OSError, ImportError, RuntimeError) as error:
            print(f"[attention-edit] no progress lines: {error}", file=sys.stderr, flush=True)
        finally:
            self._ready.set()
            self._ended.set()

    async def _listen(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session, session.ws_connect(self._address) as channel:
            self._ready.set()
            while not self._closed.is_set():
                try:
                    message = await channel.receive(timeout=0.25)
                except TimeoutError:
                    continue
                if message.type in (
                    aiohttp.WSMsgType.CLOSED,
                    aiohttp.WSMsgType.CLOSING,
                    aiohttp.WSMsgType.ERROR,
                ):
                    return
                if message.type == aiohttp.WSMsgType.TEXT:
                    self._hand_on(json.loads(message.data))

    def _hand_on(self, message: Mapping[str, Any]) -> None:
        if message["type"] in ENDS:
            self._ended.set()
        if message["type"] != "progress_state":
            return
        for node_id, state in message["data"]["nodes"].items():
            if state["state"] == "running":
                self._handler(node_id, int(state["value"]), int(state["max"]))
