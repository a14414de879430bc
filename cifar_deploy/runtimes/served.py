"""A model on a server: Triton, or another that speaks the Open Inference Protocol, by gRPC.

The protocol: open-inference-protocol's specification/protocol/inference_grpc.md; what Triton adds,
a model's configuration and classification, its docs/protocol/extension_*.md.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cifar_deploy.address import Address
from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.errors import UserError, one_line, plain
from cifar_deploy.runtimes.protocol import (
    ANY,
    MOST_CLASSES,
    REMOTE,
    Bound,
    Logits,
    in_batches,
)

PATIENCE = 10  # seconds for a question
BATCH_PATIENCE = 300  # for a batch
PIXELS, LOGITS = "UINT8", "FP32"


class Served:
    """A model with the deployment interface that a server has.

    Its times are those of requests: the network, the server's queue and other clients are in them.
    Raises UserError where tritonclient is missing, where no server answers, and for a model that is
    not ready or has another interface.
    """

    def __init__(self, address: Address) -> None:
        try:
            from tritonclient import grpc
        except (ImportError, RuntimeError) as error:  # the latter where it came without gRPC
            raise UserError(
                f"{address}: tritonclient does not import ({one_line(error)}); run: "
                "pip install 'cifar-deploy[served]'"
            ) from error
        self.address = address
        self._grpc = grpc
        self._client = grpc.InferenceServerClient(address.host, ssl=address.secure)
        asked: dict[str, Any] = {"as_json": True, "client_timeout": PATIENCE}
        with self._told():
            server = self._client.get_server_metadata(**asked)
            facts = self._client.get_model_metadata(address.model, address.version, **asked)
        config: dict[str, Any] = {}
        with contextlib.suppress(self._refusal):  # servers that are not Triton may have none
            config = self._client.get_model_config(address.model, address.version, **asked)
        config = config.get("config", {})
        said = {key: one.get("string_value") for key, one in config.get("parameters", {}).items()}
        name = plain(server.get("name", "server")).capitalize()
        self.runtime = f"{name} {plain(server.get('version', '?'))}"
        self.provider = plain(facts.get("platform") or config.get("backend") or "unknown")
        self.device = REMOTE
        self.precision = plain(said.get("precision") or "unknown")
        self.weights_sha256 = said.get("weights_sha256") or None
        self.addition = ""
        self.batches: Sequence[range] = ANY
        self._open(facts, max(int(config.get("max_batch_size", 0)), 0))

    def _open(self, facts: dict[str, Any], largest: int) -> None:
        """Names and sizes of what it takes and gives. Raises UserError for another interface."""
        tensors = []
        for side in ("inputs", "outputs"):
            found = [
                (t.get("name", ""), t.get("datatype", ""), list(map(int, t.get("shape", []))))
                for t in facts.get(side, [])
            ]
            tensors.append(found)
        (takes, gives) = tensors
        fits = (
            len(takes) == len(gives) == 1
            and takes[0][1] == PIXELS
            and takes[0][2][1:] == [SIZE, SIZE, 3]
            and gives[0][1] == LOGITS
            and len(gives[0][2]) == 2
            and 0 < gives[0][2][1] <= MOST_CLASSES
        )
        if not fits:
            shown = [
                ", ".join(plain(f"{name} {kind} {shape}") for name, kind, shape in side)
                or "nothing"
                for side in (takes, gives)
            ]
            raise UserError(
                f"{self.address}: it takes {shown[0]} and gives {shown[1]}, and not {PIXELS} "
                f"[n, {SIZE}, {SIZE}, 3] and {LOGITS} [n, classes]: only models with the interface "
                "of `cifar-deploy export` can be asked"
            )
        self._input, _, (batch, *_) = takes[0]
        self._output, _, (_, self.classes) = gives[0]
        if largest:
            self.batches = (range(1, largest + 1),)
        elif batch > 0:
            self.batches = (range(batch, batch + 1),)

    @property
    def _refusal(self) -> type[Exception]:
        from tritonclient.utils import InferenceServerException

        refusal: type[Exception] = InferenceServerException
        return refusal

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a server, or the way to it, refuses into a UserError."""
        try:
            yield
        except self._refusal as error:
            said = one_line(error)
            way_out = "see the server's log"
            if "UNAVAILABLE" in said:
                way_out = "is the server up, and this its port for gRPC (Triton: 8001)?"
            elif "DEADLINE" in said:
                way_out = "it is too slow, or no server"
            raise UserError(f"{self.address}: {said}; {way_out}") from error

    def _ask(self, images: Images, class_count: int = 0) -> Any:
        """The answer to one request; with `class_count` so many classes in words."""
        given = self._grpc.InferInput(self._input, list(images.shape), PIXELS)
        given.set_data_from_numpy(images)
        wanted = self._grpc.InferRequestedOutput(self._output, class_count)
        answer = self._client.infer(
            self.address.model,
            [given],
            self.address.version,
            outputs=[wanted],
            client_timeout=BATCH_PATIENCE,
        )
        try:
            return answer.as_numpy(self._output)
        except (ValueError, TypeError) as error:  # its bytes are not what it says of them
            raise UserError(f"{self.address}: its answer is damaged ({one_line(error)})") from error

    def _logits(self, images: Images) -> Logits:
        """The answer in numbers. Raises UserError for one that is not as it was promised."""
        with self._told():
            answer = self._ask(images)
        wanted = len(images), self.classes
        if not isinstance(answer, np.ndarray) or answer.dtype != np.float32:
            kind = getattr(answer, "dtype", "nothing")
            raise UserError(f"{self.address}: it answers with {kind}, and not with float32")
        if answer.shape != wanted:
            raise UserError(
                f"{self.address}: its answer has the shape {list(answer.shape)}, not {list(wanted)}"
            )
        return answer

    def labels(self) -> tuple[str, ...] | None:
        """The class names that it answers with, in the order of its logits; None without any."""
        blank = np.zeros((self.batches[0][0], SIZE, SIZE, 3), np.uint8)
        try:
            answer = self._ask(blank, self.classes)
        except (self._refusal, UserError):
            return None
        if getattr(answer, "dtype", None) != np.object_:  # who does not know of it gives the logits
            return None
        try:
            # Each is "value:index" or "value:index:name".
            words = [word.decode().split(":", 2) for word in np.ravel(answer)[: self.classes]]
            names = {int(word[1]): word[2] for word in words if len(word) == 3}
        except (ValueError, IndexError):  # also what is no UTF-8
            return None
        if sorted(names) != list(range(self.classes)):
            return None
        return tuple(plain(names[index]) for index in range(self.classes))

    def expect(self, classes: tuple[str, ...], weights_sha256: str | None) -> None:
        """Raise UserError where it serves other weights than these, or names classes otherwise.

        What the server does not say is let through.
        """
        if weights_sha256 and self.weights_sha256 not in (None, weights_sha256):
            raise UserError(
                f"{self.address}: its file was exported from other weights than those "
                "that are there now; package them and start the server anew"
            )
        labels = self.labels()
        if labels and labels != classes and len(labels) == len(classes):
            first = next(i for i in range(len(labels)) if labels[i] != classes[i])
            raise UserError(
                f"{self.address}: class {first} is called {labels[first]} there, by the reference "
                f"{classes[first]}: see its labels.txt"
            )

    def streams(self, count: int) -> "list[Served]":
        """Clients of their own: one is for one thread at a time."""
        return [self, *(Served(self.address) for _ in range(count - 1))]

    def logits(self, images: Images) -> Logits:
        """Float32 [n, classes] of uint8 [n, 32, 32, 3]."""

        return in_batches(self._logits, images, self.batches)

    def bind(self, images: Images) -> Bound:
        """A request for a batch of this size."""
        given = torch.from_numpy(images.copy())

        def run() -> torch.Tensor:
            # A copy: what comes from the network cannot be written to.
            return torch.from_numpy(self._logits(given.numpy()).copy())

        run()
        return Bound(given, run)
